"""A load as it happens: its steps, then its result."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from inferapi.domain.states import LoadProgress

T = TypeVar("T")

_REPEAT_S = 1.0
_LEAST_S = 0.05


async def with_progress(
    begin: Callable[[Callable[[LoadProgress], None]], Coroutine[Any, Any, T]],
) -> AsyncGenerator[LoadProgress | T]:
    """Yield every stage, of each its newest bytes, once a second also without news; then what ``begin`` returns.

    Closing it early cancels the coroutine; whether that ends the load is the coroutine's business.
    """
    steps: deque[LoadProgress] = deque()
    news = asyncio.Event()

    def listen(step: LoadProgress) -> None:
        if steps and steps[-1].stage is step.stage:
            steps.pop()  # whoever reads slowly reads less
        steps.append(step)
        news.set()

    event_loop = asyncio.get_running_loop()
    working = asyncio.ensure_future(begin(listen))
    last: tuple[LoadProgress, float] | None = None
    try:
        while not working.done() or steps:
            if steps:
                if last and steps[0].stage is last[0].stage and (early_s := last[1] + _LEAST_S - event_loop.time()) > 0:
                    await asyncio.sleep(early_s)
                step = steps.popleft()
                last = (step, event_loop.time())
                yield step
                continue
            news.clear()
            hearing = asyncio.ensure_future(news.wait())
            try:
                await asyncio.wait({working, hearing}, timeout=_REPEAT_S, return_when=asyncio.FIRST_COMPLETED)
            finally:
                hearing.cancel()
            if last and not steps and not working.done():
                step, told_s = last
                yield replace(step, elapsed_s=round(step.elapsed_s + event_loop.time() - told_s, 3))
        yield working.result()
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)

"""Clients that leave: of streams, of whole answers, and out of the queue."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from .asking import Ask, Fate, Tally
from .load import client, until_busy, until_idle
from .talkers import infer


@dataclass(frozen=True, slots=True)
class Abandoned:
    """What so many requests left behind whose clients went away together.

    Attributes:
        running, waiting: requests at the moment before their clients left.
        idle_after_s: seconds until the server had forgotten them all.
        next_answer: what became of a short request that was sent when they left.
    """

    tally: Tally
    running: int
    waiting: int
    idle_after_s: float
    next_answer: Fate


async def abandon(url: str, *, requests: int, new_tokens: int) -> Abandoned:
    """Send so many requests of so many tokens, every other one a stream; leave them all; ask for a short answer.

    The server must take them all, must not be done with the first before it has the last, and must not be able to run
    them all at once: some are left in the queue, or on their way into it.

    Raises:
        NeverCame: the server did not take them all, or did not forget them.
    """
    tally = Tally()
    async with client(url, requests + 1) as http:
        asks = [Ask("/infer", infer(new_tokens, stream=number % 2 == 0)) for number in range(requests)]
        tasks = [asyncio.create_task(tally.ask(http, ask)) for ask in asks]
        running, waiting = await until_busy(
            http, lambda in_flight, queued: in_flight + queued == requests and queued > 0
        )
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, asyncio.CancelledError):
                tally.leave()
        left_s = time.perf_counter()
        next_answer = await tally.ask(http, Ask("/infer", infer(4)))
        await until_idle(http)
        return Abandoned(tally, running, waiting, time.perf_counter() - left_s, next_answer)

"""Several streams as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TypeVar

T = TypeVar("T")


async def side_by_side(streams: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[tuple[int, T]]:
    """Yield the items of all ``streams`` as they come, each with the number of its stream.

    When one of them fails, or when this generator is closed, all end.

    Raises:
        whatever a stream raises first.
    """
    if len(streams) == 1:  # without a task and a queue in between
        async with aclosing(streams[0]) as only:
            async for item in only:
                yield 0, item
        return
    items: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue(maxsize=len(streams))
    tasks = [asyncio.create_task(_feed(items, number, stream)) for number, stream in enumerate(streams)]
    running = len(tasks)
    try:
        while running:
            next_item = await items.get()
            if isinstance(next_item, Exception):
                raise next_item
            if next_item is None:
                running -= 1
            else:
                yield next_item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _feed(items: asyncio.Queue[tuple[int, T] | Exception | None], number: int, stream: AsyncGenerator[T]) -> None:
    """Put the items of one stream, then nothing or its error."""
    end: Exception | None = None
    try:
        async with aclosing(stream):
            async for item in stream:
                await items.put((number, item))
    except Exception as error:  # noqa: BLE001 - raised where the items are read
        end = error
    await items.put(end)

"""Several prompts of one request, each answered as if it were alone, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from inferapi.application.answer_parts import Completed, Part
from inferapi.application.answer_room import AnswerItem
from inferapi.domain.generation import Usage


async def side_by_side(
    answers: Sequence[AsyncGenerator[AnswerItem]], *, choices_each: int
) -> AsyncGenerator[AnswerItem]:
    """Yield one answer of all ``answers``: the choices of the first, then those of the second, and so on, by index.

    The parts come as they come. When one answer fails, or when this generator is closed, all end.

    Raises:
        whatever an answer raises first.
    """
    merged = _Merged(choices_each, len(answers))
    items: asyncio.Queue[tuple[int, AnswerItem] | Exception | None] = asyncio.Queue(maxsize=len(answers))
    tasks = [asyncio.create_task(_feed(items, number, answer)) for number, answer in enumerate(answers)]
    running = len(tasks)
    try:
        while running:
            item = await items.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            elif (told := merged.told(*item)) is not None:
                yield told
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    yield merged.completed()


@dataclass(slots=True)
class _Merged:
    """What was told of all answers together."""

    choices_each: int
    count: int
    is_started: bool = False
    ends: dict[int, Completed] = field(default_factory=dict)

    def told(self, number: int, item: AnswerItem) -> AnswerItem | None:
        """What an item of answer ``number`` is in the answer of all, if anything."""
        if isinstance(item, Part):
            return replace(item, index=number * self.choices_each + item.index)
        if isinstance(item, Completed):
            self.ends[number] = item
            return None
        is_news, self.is_started = not self.is_started, True
        return item if is_news else None

    def completed(self) -> Completed:
        """The end of all of them."""
        ends = [self.ends[number] for number in range(self.count)]
        usage = Usage(
            prompt_tokens=sum(end.usage.prompt_tokens for end in ends),
            completion_tokens=sum(end.usage.completion_tokens for end in ends),
            cached_tokens=sum(end.usage.cached_tokens for end in ends),
        )
        return Completed(usage, tuple(timings for end in ends for timings in end.timings))


async def _feed(
    items: asyncio.Queue[tuple[int, AnswerItem] | Exception | None], number: int, answer: AsyncGenerator[AnswerItem]
) -> None:
    """Put the items of one answer, then nothing or its error."""
    end: Exception | None = None
    try:
        async with aclosing(answer):
            async for item in answer:
                await items.put((number, item))
    except Exception as error:  # noqa: BLE001 - raised where the items are read
        end = error
    await items.put(end)

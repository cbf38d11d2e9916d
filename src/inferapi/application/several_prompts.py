"""Several prompts of one request, each answered as if it were alone, side by side."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from inferapi.application.answer_parts import Completed, Part
from inferapi.application.answer_room import AnswerItem
from inferapi.application.side_by_side import side_by_side
from inferapi.domain.generation import Usage


async def several(answers: Sequence[AsyncGenerator[AnswerItem]], *, choices_each: int) -> AsyncGenerator[AnswerItem]:
    """Yield one answer of all ``answers``: the choices of the first, then those of the second, and so on, by index.

    The parts come as they come. When one answer fails, or when this generator is closed, all end.

    Raises:
        whatever an answer raises first.
    """
    merged = _Merged(choices_each, len(answers))
    async with aclosing(side_by_side(answers)) as items:
        async for number, item in items:
            if (told := merged.told(number, item)) is not None:
                yield told
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
            reasoning_tokens=sum(end.usage.reasoning_tokens for end in ends),
        )
        return Completed(usage, tuple(timings for end in ends for timings in end.timings))

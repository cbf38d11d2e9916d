from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from fakes import TIMINGS, Gate, settle
from inferapi.application.answer_parts import Completed, Part, Started
from inferapi.application.answer_room import AnswerItem
from inferapi.application.several_prompts import several
from inferapi.domain.errors import OutOfMemory
from inferapi.domain.generation import Usage


class Answer:
    """An answer of two choices; its second choice stands before a gate, or is an error."""

    def __init__(self, name: str, *, error: Exception | None = None) -> None:
        self._name = name
        self._error = error
        self.gate = Gate()
        self.is_begun = self.is_closed = False

    async def items(self) -> AsyncGenerator[AnswerItem]:
        self.is_begun = True
        try:
            yield Started("m")
            yield Part(0, text=self._name, finish_reason="stop")
            await self.gate.passed()
            if self._error is not None:
                raise self._error
            yield Part(1, text=self._name.upper(), finish_reason="stop")
            yield Completed(Usage(3, 2, cached_tokens=1), (TIMINGS, TIMINGS))
        finally:
            self.is_closed = True


async def all_of(answers: list[Answer]) -> list[AnswerItem]:
    async with aclosing(several([answer.items() for answer in answers], choices_each=2)) as items:
        return [item async for item in items]


async def test_the_choices_of_all_prompts_are_one_answer():
    answers = [Answer(name) for name in "abc"]
    first, *parts, last = await all_of(answers)
    assert first == Started("m")
    assert {part.index: part.text for part in parts} == {0: "a", 1: "A", 2: "b", 3: "B", 4: "c", 5: "C"}
    assert last == Completed(Usage(9, 6, cached_tokens=3), (TIMINGS,) * 6)


async def test_no_prompt_waits_for_another():
    answers = [Answer(name) for name in "ab"]
    answers[0].gate.hold()
    reading = asyncio.create_task(all_of(answers))
    await settle()
    assert answers[1].is_closed
    assert not reading.done()
    answers[0].gate.open()
    assert [part.index for part in await reading if isinstance(part, Part)][-1] == 1


async def test_when_one_fails_all_end():
    answers = [Answer("a"), Answer("b", error=OutOfMemory())]
    answers[0].gate.hold()
    with pytest.raises(OutOfMemory):
        await all_of(answers)
    assert [answer.is_closed for answer in answers] == [True, True]


async def test_closing_it_early_ends_all():
    answers = [Answer(name) for name in "abc"]
    for answer in answers:
        answer.gate.hold()
    async with aclosing(several([answer.items() for answer in answers], choices_each=2)) as items:
        assert await anext(items) == Started("m")
        await settle()
        assert [answer.is_begun for answer in answers] == [True] * 3
    assert [answer.is_closed for answer in answers] == [True] * 3

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from inferapi.application.answer_parts import Completed, Part, Started
from inferapi.application.answer_room import AnswerItem, within_window
from inferapi.domain.errors import ContextWindowExceeded, OutOfMemory
from inferapi.domain.generation import SamplingParams, Usage

WINDOW_TOKENS = 100
END = Completed(Usage(1, 1), ())


class Answers:
    """Answers to a prompt of so many tokens, in a window of 100; ``asked`` holds the limits that were asked for."""

    def __init__(self, prompt_tokens: int, *, tells_early: bool = False) -> None:
        self._prompt_tokens = prompt_tokens
        self._tells_early = tells_early
        self.asked: list[int] = []
        self.closed = 0

    async def answer(self, sampling: SamplingParams) -> AsyncGenerator[AnswerItem]:
        self.asked.append(sampling.max_new_tokens)
        try:
            if self._tells_early:
                yield Started("m")
            if self._prompt_tokens + sampling.max_new_tokens > WINDOW_TOKENS:
                raise ContextWindowExceeded(
                    prompt_tokens=self._prompt_tokens,
                    max_new_tokens=sampling.max_new_tokens,
                    context_window_tokens=WINDOW_TOKENS,
                )
            if not self._tells_early:
                yield Started("m")
            yield Part(0, text="Hi", finish_reason="stop")
            yield END
        finally:
            self.closed += 1


async def all_of(answer: AsyncGenerator[AnswerItem]) -> list[AnswerItem]:
    async with aclosing(answer) as items:
        return [item async for item in items]


async def told(answers: Answers, **sampling) -> list[AnswerItem]:
    return await all_of(within_window(answers.answer, SamplingParams(**sampling)))


@pytest.mark.parametrize("tells_early", [False, True])
@pytest.mark.parametrize(("prompt_tokens", "asked"), [(10, [50]), (50, [50]), (51, [50, 49]), (99, [50, 1])], ids=str)
async def test_an_answer_is_as_long_as_there_is_room_for(prompt_tokens, asked, tells_early):
    answers = Answers(prompt_tokens, tells_early=tells_early)
    whole = await told(answers, max_new_tokens=50)
    assert whole == [Started("m"), Part(0, text="Hi", finish_reason="stop"), END]
    assert answers.asked == asked
    assert answers.closed == len(asked)


@pytest.mark.parametrize(("prompt_tokens", "least"), [(100, 0), (5000, 0), (91, 10)])
async def test_without_room_it_is_refused_as_it_was(prompt_tokens, least):
    answers = Answers(prompt_tokens)
    with pytest.raises(ContextWindowExceeded) as caught:
        await told(answers, max_new_tokens=50, min_new_tokens=least)
    assert (caught.value.facts["max_new_tokens"], answers.asked) == (50, [50])


async def test_closing_it_early_closes_the_answer():
    answers = Answers(10)
    async with aclosing(within_window(answers.answer, SamplingParams(max_new_tokens=50))) as items:
        assert await anext(items) == Started("m")
        assert answers.closed == 0
    assert answers.closed == 1


async def test_another_error_is_not_asked_again():
    asked = []

    async def answer(sampling: SamplingParams) -> AsyncGenerator[AnswerItem]:
        asked.append(sampling)
        yield Started("m")
        raise OutOfMemory

    with pytest.raises(OutOfMemory):
        await all_of(within_window(answer, SamplingParams()))
    assert len(asked) == 1

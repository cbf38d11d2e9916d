"""Answers that nobody set a limit to: as long as the context window has room for."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace

from inferapi.application.answer_parts import Completed, Part, Started
from inferapi.domain.errors import ContextWindowExceeded
from inferapi.domain.generation import SamplingParams

AnswerItem = Started | Part | Completed


async def within_window(
    answer: Callable[[SamplingParams], AsyncGenerator[AnswerItem]], sampling: SamplingParams
) -> AsyncGenerator[AnswerItem]:
    """Yield what ``answer`` gives; where ``max_new_tokens`` is more than there is room for, with what there is.

    Only the model's tokenizer can tell how long a prompt is: so the answer is asked for as it is, and, refused for
    its length, once more with a shorter one.

    Raises:
        ContextWindowExceeded: there is no room for a single token, or for ``min_new_tokens``.
        others: as ``answer``.
    """
    is_started = False
    try:
        async with aclosing(answer(sampling)) as items:
            async for item in items:
                is_started = True
                yield item
    except ContextWindowExceeded as error:
        sampling = replace(sampling, max_new_tokens=_room_tokens(error))
        if sampling.max_new_tokens < max(sampling.min_new_tokens, 1):
            raise
    else:
        return
    async with aclosing(answer(sampling)) as items:
        async for item in items:
            if not (is_started and isinstance(item, Started)):  # it was told who answers
                yield item


def _room_tokens(error: ContextWindowExceeded) -> int:
    """What the prompt leaves of the context window."""
    prompt_tokens, window_tokens = error.facts.get("prompt_tokens"), error.facts.get("context_window_tokens")
    if not isinstance(prompt_tokens, int) or not isinstance(window_tokens, int):
        return 0
    return window_tokens - prompt_tokens

"""Answers from a model: one prompt in, chunks out."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from inferapi.application.counted import counted_answer
from inferapi.application.lifecycle import ModelLifecycle
from inferapi.domain.generation import Chunk, Finish, GenerationRequest, Prompt, SamplingParams
from inferapi.domain.model import ModelRef
from inferapi.domain.ports import Clock


@dataclass(frozen=True, slots=True)
class Answered:
    """The end of an answer: all of its text, how it ended, and which model gave it."""

    text: str
    model: str
    finish: Finish


class Inference:
    """Runs prompts on the model they name or on the current one, each within the request deadline."""

    def __init__(self, lifecycle: ModelLifecycle, clock: Clock, request_timeout_s: float) -> None:
        self._lifecycle = lifecycle
        self._clock = clock
        self._request_timeout_s = request_timeout_s

    async def infer(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        owner: str = "",
        affinity: str | None = None,
        model: ModelRef | None = None,
    ) -> AsyncGenerator[Chunk | Answered]:
        """Yield the pieces of the answer as they are decoded, none empty, then ``Answered``.

        Without ``model`` the current one answers; a named one is loaded first if need be.
        What was computed for one ``owner`` is never reused for another.
        Closing the generator stops the work within one decode step.

        Raises:
            GenerationFailed, WrongState, ModelUnavailable, InvalidInput: as ``ModelLifecycle.lease`` and
                ``TextEngine.generate`` raise them.
        """
        arrived_s = self._clock.monotonic_s()
        request = GenerationRequest(prompt, sampling, arrived_s, arrived_s + self._request_timeout_s, affinity, owner)
        async with self._lifecycle.lease(model) as engine:
            parts: list[str] = []
            async with aclosing(counted_answer(engine, request, self._lifecycle.telemetry)) as chunks:
                async for chunk in chunks:
                    if chunk.text:
                        parts.append(chunk.text)
                        yield chunk
                    if chunk.finish is not None:
                        yield Answered("".join(parts), engine.facts.model, chunk.finish)

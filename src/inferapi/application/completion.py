"""Answers in OpenAI's sense: one prompt, several choices side by side, with tool calls and reasoning told apart."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

from inferapi.application.answer_parts import Completed, Part, Started
from inferapi.application.answer_reader import AnswerReader
from inferapi.application.counted import counted_answer
from inferapi.application.lifecycle import ModelLifecycle
from inferapi.application.reasoning import ReasoningParser
from inferapi.application.side_by_side import side_by_side
from inferapi.application.tool_calls import ToolCallParser
from inferapi.application.tool_choice import AUTO, ToolChoice, constrained, offered
from inferapi.domain.generation import Finish, GenerationRequest, Prompt, SamplingParams, Tool, Usage
from inferapi.domain.model import EngineFacts, ModelRef
from inferapi.domain.ports import Clock

_SEEDS = 2**64  # the largest number that crosses to the engine is one less


class Completion:
    """Completes prompts on the model they name or on the current one, each within the request deadline."""

    def __init__(self, lifecycle: ModelLifecycle, clock: Clock, request_timeout_s: float) -> None:
        self._lifecycle = lifecycle
        self._clock = clock
        self._request_timeout_s = request_timeout_s

    async def complete(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        n: int = 1,
        tool_choice: ToolChoice = AUTO,
        parallel_tool_calls: bool = True,
        owner: str = "",
        model: ModelRef | None = None,
        parses: bool = True,
    ) -> AsyncGenerator[Started | Part | Completed]:
        """Yield ``Started`` as soon as the model speaks, the parts of all choices as they come, then ``Completed``.

        Whatever is wrong with the request is raised before ``Started``. All choices have one lease, and the
        generator ends them all when it is closed, or when one of them fails.

        Args:
            prompt: text, or messages and the tools that they may call.
            sampling: of each choice.
            owner: what was computed for one is never reused for another.
            model: the current one, unless named.
            n: choices. Where there is a seed, each has its own: the seed plus its index.
            tool_choice: about ``prompt.tools``.
            parallel_tool_calls: false for one call at most. What the model would call beyond it is left out.
            parses: false leaves text as it is, whatever it looks like.

        Raises:
            InvalidRequest: the tools, the choice among them and the constraint do not go together or with the model.
            GenerationFailed, WrongState, ModelUnavailable, InvalidInput: as ``ModelLifecycle.lease`` and
                ``TextEngine.generate`` raise them.
        """
        arrived_s = self._clock.monotonic_s()
        finishes: dict[int, Finish] = {}
        async with self._lifecycle.lease(model) as engine:
            facts = engine.facts
            tools: Sequence[Tool] = ()
            or_value = sampling.constraint is not None and not tool_choice.is_forced
            if parses:
                tools = offered(prompt.tools, tool_choice, facts)
                prompt = replace(prompt, tools=tuple(tools))
                sampling = constrained(sampling, tools, tool_choice, facts, is_parallel=parallel_tool_calls)
            most_calls = None if parallel_tool_calls else 1
            readers = [_reader(index, facts, tools, most_calls, parses=parses, or_value=or_value) for index in range(n)]
            deadline_s = arrived_s + self._request_timeout_s
            requests = [
                GenerationRequest(prompt, _of_choice(sampling, index), arrived_s, deadline_s, salt=owner)
                for index in range(n)
            ]
            is_started = False
            answers = [counted_answer(engine, request, self._lifecycle.telemetry) for request in requests]
            async with aclosing(side_by_side(answers)) as chunks:
                async for index, chunk in chunks:
                    if not is_started:
                        is_started = True
                        yield Started(facts.model)
                    for part in readers[index].read(chunk):
                        yield part
                    if chunk.finish is not None:
                        finishes[index] = chunk.finish
        reasoning_tokens = sum(reader.reasoning_tokens for reader in readers)
        yield _completed([finishes[index] for index in range(n)], reasoning_tokens)


def _reader(
    index: int, facts: EngineFacts, tools: Sequence[Tool], most_calls: int | None, *, parses: bool, or_value: bool
) -> AnswerReader:
    reasoning, calls = None, None
    if parses and facts.reasoning_tags is not None:
        reasoning = ReasoningParser(facts.reasoning_tags, from_start=facts.reasons_from_start)
    if tools and facts.tool_format is not None:
        names = {tool.name for tool in tools}
        calls = ToolCallParser(facts.tool_format, names, max_calls=most_calls, or_value=or_value)
    return AnswerReader(index, reasoning=reasoning, calls=calls)


def _of_choice(sampling: SamplingParams, index: int) -> SamplingParams:
    if sampling.seed is None:
        return sampling
    seed = sampling.seed + index
    return replace(sampling, seed=seed if seed < _SEEDS else seed - _SEEDS)


def _completed(finishes: Sequence[Finish], reasoning_tokens: int) -> Completed:
    first = finishes[0].usage
    usage = Usage(
        prompt_tokens=first.prompt_tokens,
        completion_tokens=sum(finish.usage.completion_tokens for finish in finishes),
        dropped_turns=first.dropped_turns,
        cached_tokens=first.cached_tokens,
        reasoning_tokens=reasoning_tokens,
    )
    return Completed(usage, tuple(finish.timings for finish in finishes))

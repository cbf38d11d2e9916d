"""Attributes of spans, by the names of OpenTelemetry's conventions for generative AI.

https://github.com/open-telemetry/semantic-conventions-genai, ``docs/gen-ai/gen-ai-spans.md``. They are in development,
so the names are written out here and do not change with a library. Nothing that a client wrote is among them: no
prompt, no answer, no stop string, no session id.
"""

from __future__ import annotations

from inferapi.domain.generation import Finish, SamplingParams

Attributes = dict[str, str | int | float | list[str]]


def request_attributes(sampling: SamplingParams) -> Attributes:
    """What was asked for."""
    attributes: Attributes = {
        "gen_ai.request.max_tokens": sampling.max_new_tokens,
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.presence_penalty": sampling.presence_penalty,
        "gen_ai.request.frequency_penalty": sampling.frequency_penalty,
    }
    if sampling.top_k:
        attributes["gen_ai.request.top_k"] = sampling.top_k
    if sampling.seed is not None and sampling.seed < 2**63:  # the largest number that OTLP has
        attributes["gen_ai.request.seed"] = sampling.seed
    return attributes


def finish_attributes(finish: Finish) -> Attributes:
    """What came of it: tokens, times in seconds, and how it ended."""
    usage, timings = finish.usage, finish.timings
    attributes: Attributes = {
        "gen_ai.response.finish_reasons": [finish.reason.value],
        "gen_ai.usage.input_tokens": usage.prompt_tokens,
        "gen_ai.usage.output_tokens": usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
        "inferapi.queue_s": timings.queue_s,
    }
    if usage.completion_tokens:
        attributes["gen_ai.response.time_to_first_chunk"] = timings.time_to_first_token_s
    if usage.reasoning_tokens:
        attributes["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning_tokens
    return attributes

"""Requests on an engine, counted by how they end: each is finished, failed, aborted or rejected, and never two of them.

Tokens and the times between them are counted where they are made (``StepTally``); what is rejected, where it is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from inferapi.domain.errors import GenerationFailed
from inferapi.domain.generation import Chunk, EmbeddingRequest, Embeddings, FinishReason, GenerationRequest
from inferapi.domain.ports import Clock, TextEngine
from inferapi.domain.telemetry import StepTally, Telemetry


async def counted_answer(engine: TextEngine, request: GenerationRequest, telemetry: Telemetry) -> AsyncGenerator[Chunk]:
    """What ``engine.generate`` yields, and raises. An answer that was told to its end is finished, whatever follows."""
    model, is_finished = engine.facts.model, False
    try:
        async with aclosing(engine.generate(request)) as chunks:
            async for chunk in chunks:
                if chunk.finish is not None:
                    is_finished = True
                    telemetry.request_finished(model, chunk.finish.reason.value, chunk.finish.timings.total_s)
                yield chunk
    except GenerationFailed as error:
        telemetry.request_failed(model, error.code)
        error.is_counted = True
        raise
    except (asyncio.CancelledError, GeneratorExit):
        if not is_finished:
            telemetry.request_aborted(model)
        raise


async def counted_vectors(
    engine: TextEngine, request: EmbeddingRequest, telemetry: Telemetry, clock: Clock
) -> Embeddings:
    """What ``engine.embed`` returns, and raises. As in vLLM, the finish reason of vectors is ``stop``."""
    model = engine.facts.model
    try:
        embeddings = await engine.embed(request)
    except GenerationFailed as error:
        telemetry.request_failed(model, error.code)
        error.is_counted = True
        raise
    except asyncio.CancelledError:
        telemetry.request_aborted(model)
        raise
    telemetry.engine_stepped(model, StepTally(prompt_tokens=embeddings.prompt_tokens))
    telemetry.request_finished(model, FinishReason.STOP.value, clock.monotonic_s() - request.arrived_s)
    return embeddings

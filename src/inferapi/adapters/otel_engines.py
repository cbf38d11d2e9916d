"""Engines that tell of their generations, around those of any launcher."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from inferapi.adapters.otel_attributes import request_attributes
from inferapi.adapters.otel_generations import GenerationTelemetry
from inferapi.domain.generation import Chunk, EmbeddingRequest, Embeddings, GenerationRequest
from inferapi.domain.model import EngineFacts, EngineLoad, EngineSpec
from inferapi.domain.ports import EngineLauncher, TextEngine
from inferapi.domain.states import Report


class TracedEngine:
    """A ``TextEngine`` that tells of each generation."""

    def __init__(self, engine: TextEngine, telemetry: GenerationTelemetry) -> None:
        self._engine = engine
        self._telemetry = telemetry

    @property
    def facts(self) -> EngineFacts:
        """See ``TextEngine``."""
        return self._engine.facts

    @property
    def load(self) -> EngineLoad:
        """See ``TextEngine``."""
        return self._engine.load

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk]:
        """See ``TextEngine``."""
        operation = "chat" if request.prompt.text is None else "text_completion"
        attributes = request_attributes(request.sampling)
        with self._telemetry.telling(operation, self.facts.model, request.arrived_s, attributes) as work:
            async with aclosing(self._engine.generate(request)) as chunks:
                async for chunk in chunks:
                    if chunk.finish is not None:
                        work.finish = chunk.finish
                    yield chunk

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """See ``TextEngine``."""
        with self._telemetry.telling("embeddings", self.facts.model, request.arrived_s, {}) as work:
            embeddings = await self._engine.embed(request)
            work.prompt_tokens = embeddings.prompt_tokens
            return embeddings

    @property
    def is_closed(self) -> bool:
        """See ``TextEngine``."""
        return self._engine.is_closed

    async def wait_closed(self) -> None:
        """See ``TextEngine``."""
        await self._engine.wait_closed()

    async def aclose(self) -> None:
        """See ``TextEngine``."""
        await self._engine.aclose()


class TracedLauncher:
    """An ``EngineLauncher`` whose engines tell of their generations."""

    def __init__(self, launcher: EngineLauncher, telemetry: GenerationTelemetry) -> None:
        self._launcher = launcher
        self._telemetry = telemetry

    async def start(self) -> None:
        """See ``EngineLauncher``."""
        await self._launcher.start()

    async def launch(self, spec: EngineSpec, report: Report) -> TextEngine:
        """See ``EngineLauncher``."""
        return TracedEngine(await self._launcher.launch(spec, report), self._telemetry)

    async def aclose(self) -> None:
        """See ``EngineLauncher``."""
        await self._launcher.aclose()

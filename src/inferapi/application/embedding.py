"""Texts become vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inferapi.application.counted import counted_vectors
from inferapi.application.lifecycle import ModelLifecycle
from inferapi.domain.errors import InvalidRequest
from inferapi.domain.generation import EmbeddingRequest, Embeddings
from inferapi.domain.model import ModelRef
from inferapi.domain.ports import Clock


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors, and which model made them."""

    model: str
    embeddings: Embeddings


class Embedding:
    """Embeds texts with the model that is named or the current one, within the request deadline."""

    def __init__(self, lifecycle: ModelLifecycle, clock: Clock, request_timeout_s: float) -> None:
        self._lifecycle = lifecycle
        self._clock = clock
        self._request_timeout_s = request_timeout_s

    async def embed(
        self, texts: Sequence[str], *, owner: str = "", model: ModelRef | None = None, dimensions: int | None = None
    ) -> Embedded:
        """A vector of length 1 for each text, in order. Owners take turns. Cancelling drops the work.

        Args:
            texts: at least one.
            owner: whose work it is.
            model: the one to embed with; ``None`` for the current one.
            dimensions: how many numbers each vector is to have; ``None`` takes what the model makes.

        Raises:
            InvalidRequest: the model's vectors have other dimensions; nothing was computed.
            EmbeddingsRefused: the model cannot.
            GenerationFailed, WrongState, ModelUnavailable, InvalidInput: as ``ModelLifecycle.lease`` and
                ``TextEngine.embed`` raise them.
        """
        arrived_s = self._clock.monotonic_s()
        request = EmbeddingRequest(tuple(texts), arrived_s, arrived_s + self._request_timeout_s, salt=owner)
        async with self._lifecycle.lease(model) as engine:
            made = engine.facts.embedding_dimensions
            if engine.facts.embeds and dimensions not in {None, made}:
                problem = f"dimensions: the vectors of this model have {made}"
                raise InvalidRequest(problem=problem, param="dimensions")
            embeddings = await counted_vectors(engine, request, self._lifecycle.telemetry, self._clock)
            return Embedded(engine.facts.model, embeddings)

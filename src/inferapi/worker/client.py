"""The API process's end of a worker: a ``TextEngine`` over a socket."""

from __future__ import annotations

import asyncio
import itertools
import logging
import struct
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from inferapi.domain.errors import GenerationAborted, GenerationTimeout, InferapiError, ModelCrashed
from inferapi.domain.generation import Chunk, EmbeddingRequest, Embeddings, GenerationRequest
from inferapi.domain.model import EngineFacts, EngineLoad
from inferapi.domain.telemetry import SILENT, Telemetry
from inferapi.logs import origin
from inferapi.worker.client_connection import WorkerConnection
from inferapi.worker.messages import Beat, Cancel, Embed, Embedded, FromWorker, Generate, StepDone

log = logging.getLogger(__name__)

EndWorker = Callable[[], Awaitable[object]]
"""Give the worker a moment to end by itself, then kill it; returns when it is gone."""


class _Answer:
    """What came for one request and was not read yet.

    Attributes:
        timeout: what is put at the deadline.
        is_over: the worker has nothing more to say to this request.
    """

    def __init__(self, event_loop: asyncio.AbstractEventLoop, timeout: GenerationTimeout) -> None:
        self._event_loop = event_loop
        self._items: deque[Chunk | Embedded | InferapiError] = deque()
        self._reader: asyncio.Future[None] | None = None
        self.timeout = timeout
        self.is_over = False

    def put(self, item: Chunk | Embedded | InferapiError) -> None:
        """Add to it."""
        self._items.append(item)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def get(self) -> Chunk | Embedded:
        """The next item; one reader at a time. An error that was put is raised here."""
        if not self._items:
            self._reader = self._event_loop.create_future()
            await self._reader
        item = self._items.popleft()
        if isinstance(item, InferapiError):
            self.is_over = item is not self.timeout
            raise item
        return item


class WorkerEngine:
    """One loaded model in another process."""

    def __init__(
        self,
        facts: EngineFacts,
        connection: WorkerConnection,
        end_worker: EndWorker,
        *,
        memory_bytes: int = 0,
        telemetry: Telemetry = SILENT,
    ) -> None:
        self._facts = facts
        self._connection = connection
        self._end_worker = end_worker
        self._load = EngineLoad()
        self._memory_bytes = memory_bytes
        self._telemetry = telemetry
        self._ids = itertools.count(1)
        self._answers: dict[int, _Answer] = {}
        self._closed = asyncio.Event()
        self._ending: asyncio.Task[None] | None = None
        connection.listen(self._hear)

    @property
    def facts(self) -> EngineFacts:
        """See ``TextEngine``."""
        return self._facts

    @property
    def load(self) -> EngineLoad:
        """See ``TextEngine``."""
        return EngineLoad() if self.is_closed else replace(self._load, memory_bytes=self._memory_bytes)

    @property
    def is_closed(self) -> bool:
        """See ``TextEngine``."""
        return self._closed.is_set()

    async def wait_closed(self) -> None:
        """See ``TextEngine``."""
        await self._closed.wait()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk]:
        """See ``TextEngine``."""
        with self._asking(partial(Generate, request=request, origin=origin()), request) as answer:
            while not answer.is_over:
                item = await answer.get()
                if isinstance(item, Chunk):
                    answer.is_over = item.finish is not None
                    yield item

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """See ``TextEngine``."""
        vectors: list[tuple[float, ...]] = []
        prompt_tokens = 0
        with self._asking(partial(Embed, request=request, origin=origin()), request) as answer:
            while len(vectors) < len(request.texts):
                item = await answer.get()
                if isinstance(item, Embedded):
                    vectors.append(struct.unpack(f"<{len(item.vector) // 4}f", item.vector))
                    prompt_tokens += item.prompt_tokens
            answer.is_over = True
        return Embeddings(tuple(vectors), prompt_tokens)

    @contextmanager
    def _asking(
        self, message: Callable[[int], Generate | Embed], request: GenerationRequest | EmbeddingRequest
    ) -> Iterator[_Answer]:
        """Send what is asked, made of its id, and hear what is answered until the end, the deadline or a cancel."""
        if self.is_closed:
            raise self._gone()
        request_id = next(self._ids)
        event_loop = asyncio.get_running_loop()
        timeout = GenerationTimeout(timeout_s=round(request.deadline_s - request.arrived_s, 3))
        answer = self._answers[request_id] = _Answer(event_loop, timeout)
        self._connection.send(message(request_id))
        timer = event_loop.call_at(request.deadline_s, answer.put, timeout)  # asyncio's clock is the same
        try:
            yield answer
        finally:
            timer.cancel()
            del self._answers[request_id]
            if not answer.is_over:
                self._connection.send(Cancel(request_id))

    async def aclose(self) -> None:
        """See ``TextEngine``."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end())
        await asyncio.shield(self._ending)

    async def _end(self) -> None:
        self._connection.close()
        self._close()
        await self._end_worker()
        self._connection.abort()  # of one that was killed, the socket may hold what it never read
        await self._connection.wait_lost()

    def _hear(self, message: FromWorker | None) -> None:
        if isinstance(message, StepDone):
            self._load = message.load
            if message.tally is not None:
                self._telemetry.engine_stepped(self._facts.model, message.tally)
            for request_id, chunk in message.chunks:
                self._deliver(request_id, chunk)
            for request_id, failure in message.failures:
                self._deliver(request_id, failure.unpack())
        elif isinstance(message, Embedded):
            self._deliver(message.request_id, message)
        elif isinstance(message, Beat):
            self._memory_bytes = message.memory_bytes
        elif message is None:
            if self._ending is None:
                log.error("the worker of %s ended unexpectedly", self._facts.model)
            self._connection.abort()
            self._close()

    def _deliver(self, request_id: int, item: Chunk | Embedded | InferapiError) -> None:
        answer = self._answers.get(request_id)
        if answer is not None:  # else it was cancelled meanwhile
            answer.put(item)

    def _close(self) -> None:
        self._closed.set()
        for answer in self._answers.values():
            answer.put(self._gone())

    def _gone(self) -> InferapiError:
        if self._ending is not None:
            return GenerationAborted(reason="it was unloaded")
        return ModelCrashed(model=self._facts.model)

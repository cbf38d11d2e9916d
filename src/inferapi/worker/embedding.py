"""Texts on their way to vectors: tokenized in a thread, then computed one at a time, between the steps of the loop."""

from __future__ import annotations

import logging
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from inferapi.domain.errors import InferapiError, InvalidRequest, OutOfMemory, QueueFull
from inferapi.engine.fair_queue import FairQueue
from inferapi.engine.loop import Output, is_out_of_memory
from inferapi.logs import Origin, on_behalf_of
from inferapi.worker.message_thread import MessageThread
from inferapi.worker.messages import Embed, Embedded

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EmbeddingJob:
    """The texts of a request that are no vectors yet, as token ids, the next one first; ``salt`` is its owner."""

    request_id: int
    texts: deque[list[int]]
    salt: str = ""
    origin: Origin = (None, None)


class TextThread(MessageThread[Embed, EmbeddingJob | Output]):
    """Requests in, jobs out. One that is cancelled comes out at its next text.

    Args:
        encode: a text to token ids.
        deliver, on_end: as ``MessageThread`` has them.
    """

    def __init__(
        self,
        encode: Callable[[str], list[int]],
        *,
        deliver: Callable[[EmbeddingJob | Output], None],
        on_end: Callable[[], None],
    ) -> None:
        super().__init__("texts", deliver=deliver, on_end=on_end)
        self._encode = encode

    def _encoded(self, message: Embed) -> EmbeddingJob | Output:
        job = EmbeddingJob(message.request_id, deque(), message.salt, message.origin)
        try:
            for text in message.request.texts:
                if message.request_id in self._cancelled:
                    break
                job.texts.append(self._encode(text))
        except InferapiError as error:
            return Output(message.request_id, error)
        except BaseException as error:  # one odd text must not end the thread of all; a panic in Rust is no Exception
            if is_out_of_memory(error):
                log.warning("no memory to encode a text: %s", error)
                return Output(message.request_id, OutOfMemory())
            log.exception("a text could not be encoded")
            return Output(message.request_id, InvalidRequest(problem="The model's tokenizer cannot encode this text."))
        return job


class EmbeddingTurns:
    """Whose text is computed next: one of each owner in turn, and within an owner one of each request in turn.

    So many texts of a request hold up nobody's few, and many requests of a key no other key. For the main thread.

    Args:
        embed: token ids to a vector.
        most_waiting: requests that may wait.
    """

    def __init__(self, embed: Callable[[Sequence[int]], list[float]], most_waiting: int) -> None:
        self._embed = embed
        self._most_waiting = most_waiting
        self._jobs: FairQueue[EmbeddingJob] = FairQueue()

    @property
    def is_idle(self) -> bool:
        """No text waits."""
        return not self._jobs

    def submit(self, job: EmbeddingJob) -> list[Output]:
        """Queue a job. What is returned is the refusal of another one, if one had to leave the full queue for it.

        Raises:
            QueueFull: too many wait already, none of them of an owner that has more waiting.
        """
        if len(self._jobs) < self._most_waiting:
            if job.texts:
                self._jobs.push(job)
            return []
        last = self._jobs.gives_way_to(job.salt)
        if last is None:
            raise QueueFull(waiting=len(self._jobs))
        if not job.texts:
            return []
        # The last to come: by their turns, the last one is who had a text computed just now.
        displaced = max((other for other in self._jobs if other.salt == last.salt), key=lambda other: other.request_id)
        self._jobs.remove(displaced)
        self._jobs.push(job)
        return [Output(displaced.request_id, QueueFull(waiting=len(self._jobs)))]

    def cancel(self, request_id: int) -> None:
        """Drop what is left of a job; unknown ids are fine, it may be done."""
        for job in [job for job in self._jobs if job.request_id == request_id]:
            self._jobs.remove(job)

    def step(self) -> Embedded | Output | None:
        """Compute one text: its vector, or why its request fails; ``None`` when idle."""
        if not self._jobs:
            return None
        job = self._jobs.take()
        tokens = job.texts.popleft()
        try:
            vector = self._embed(tokens)
        except InferapiError as error:
            return Output(job.request_id, error)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            with on_behalf_of(job.origin):
                log.warning("a text found no memory: %s", str(error).partition("\n")[0])
            return Output(job.request_id, OutOfMemory())
        if job.texts:
            self._jobs.push(job)
        return Embedded(job.request_id, struct.pack(f"<{len(vector)}f", *vector), len(tokens))

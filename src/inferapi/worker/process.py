"""A worker's life: load a model, run its step loop, answer messages, end when the socket does.

Five threads. The pulse says that the process lives. The reader receives; cancels go straight to the step loop.
The encoder renders and tokenizes prompts, another one tokenizes texts to be embedded. The main thread loads, steps,
embeds between steps, and sends.
"""

from __future__ import annotations

import gc
import logging
import os
import queue
import socket
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import transformers

from inferapi.domain.errors import InferapiError, ModelLoadFailed, OutOfMemory, QueueFull
from inferapi.domain.generation import Chunk
from inferapi.domain.model import EngineSpec
from inferapi.engine.loop import Output, is_out_of_memory
from inferapi.engine.model_loader import LoadedModel, load_model
from inferapi.engine.request import Request
from inferapi.engine.threads import ThreadGovernor, waited_for_cores_s
from inferapi.worker.connection import Connection, ProgressSender
from inferapi.worker.embedding import EmbeddingJob, EmbeddingTurns, TextThread
from inferapi.worker.encoding import PromptThread
from inferapi.worker.messages import (
    NO_MEMORY_STATUS,
    Cancel,
    Embed,
    Embedded,
    Failure,
    Generate,
    Load,
    Loaded,
    LoadFailed,
    StepDone,
)
from inferapi.worker.pulse import Pulse

log = logging.getLogger(__name__)

_SECOND_WANT_S = 60.0
# A thread in pure Python lets go of the interpreter only when asked for so long; a step asks a thousand times.
_SWITCH_INTERVAL_S = 0.0005


class Worker:
    """Feeds one model's step loop from the socket and the socket from the loop."""

    def __init__(
        self,
        model: LoadedModel,
        connection: Connection,
        most_encoding: int,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most_encoding = most_encoding
        self._model = model
        self._connection = connection
        self._now_s = now_s
        self._inbox: queue.SimpleQueue[Request | EmbeddingJob | Output | Cancel | None] = queue.SimpleQueue()
        self._prompts = PromptThread(model.encoder, model.constrainer, deliver=self._inbox.put, on_end=self._end)
        self._texts = TextThread(model.encoder.encode_text, deliver=self._inbox.put, on_end=self._end)
        self._embeddings = EmbeddingTurns(model.embedder.embed, most_encoding)
        self._encoding: dict[int, str] = {}  # whose each one is
        self._cancelled: set[int] = set()  # while still being encoded
        self._no_memory_s = float("-inf")  # when a step found no memory last
        self._governor = ThreadGovernor(
            model.threads if model.waits_for_threads else 1,  # of one there is nothing to give up
            waited_s=waited_for_cores_s,
            set_threads=model.use_threads,
            now_s=now_s,
        )

    def start(self) -> None:
        """Start the threads beside the main one."""
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        self._prompts.start()
        self._texts.start()

    def run(self) -> None:
        """Step until the socket ends, or until memory ran out a second time."""
        loop, governor = self._model.loop, self._governor
        while True:
            outputs: list[Output] = []
            was_idle = loop.is_idle
            wait = was_idle and self._embeddings.is_idle
            while wait or not self._inbox.empty():
                item = self._inbox.get()
                if item is None:
                    return
                outputs += self._take(item)
                if wait:
                    governor.resume()
                wait = False
            outputs += loop.step()
            governor.observe()
            if outputs or (loop.is_idle and not was_idle):
                self._publish(outputs)
            outputs += self._embed_next()
            if self._is_out_of_memory_again(outputs) or loop.is_spoiled:
                self._connection.hang_up()  # now, so that no other request comes here
                log.error("memory ran out, twice within %.0f s or for good: the process ends", _SECOND_WANT_S)
                return

    def look_after_prompts(self) -> None:
        """About once a second: end what is overdue, or the process with it if it cannot be ended."""
        if self._prompts.is_stuck():
            log.error("a prompt's encoding ignores its end: the process ends, to be replaced")
            sys.stderr.flush()
            os._exit(1)

    def _end(self) -> None:
        self._inbox.put(None)

    def _take(self, item: Request | EmbeddingJob | Output | Cancel) -> list[Output]:
        if isinstance(item, Cancel):
            if item.request_id in self._encoding:
                self._cancelled.add(item.request_id)
            else:
                self._model.loop.cancel(item.request_id)
                self._embeddings.cancel(item.request_id)
            return []
        self._encoding.pop(item.request_id, None)
        if item.request_id in self._cancelled:
            self._cancelled.discard(item.request_id)
            return []
        if isinstance(item, Output):
            return [item]
        try:
            if isinstance(item, EmbeddingJob):
                return self._embeddings.submit(item)
            return self._model.loop.submit(item)
        except InferapiError as error:
            return [Output(item.request_id, error)]

    def _embed_next(self) -> list[Output]:
        """Make one vector, if somebody waits for one: answers wait no longer than for one text."""
        item = self._embeddings.step()
        if isinstance(item, Embedded):
            self._connection.send(item)
        if not isinstance(item, Output):
            return []
        self._publish([item])
        return [item]

    def _publish(self, outputs: list[Output]) -> None:
        chunks = [(output.request_id, output.item) for output in outputs if isinstance(output.item, Chunk)]
        failures = [
            (output.request_id, Failure.of(output.item)) for output in outputs if isinstance(output.item, InferapiError)
        ]
        loop = self._model.loop
        self._connection.send(StepDone(loop.load, chunks, failures, loop.take_tally()))

    def _is_out_of_memory_again(self, outputs: list[Output]) -> bool:
        if not any(isinstance(output.item, OutOfMemory) for output in outputs):
            return False
        before_s, self._no_memory_s = self._no_memory_s, self._now_s()
        return self._no_memory_s - before_s < _SECOND_WANT_S

    def _read(self) -> None:
        try:
            while (message := self._connection.receive()) is not None:
                if isinstance(message, Generate | Embed):
                    self._encode(message)
                elif isinstance(message, Cancel):
                    self._inbox.put(message)  # first: what the encoder then has to say of it is of no interest
                    self._prompts.cancel(message.request_id)
                    self._texts.cancel(message.request_id)
        finally:
            self._end()  # also when there was no memory for a message: a worker that hears nothing is none

    def _encode(self, message: Generate | Embed) -> None:
        """Hand it to its thread. Where too many wait there, the last of the owner with the most goes, or this one.

        Those that are encoded already cannot go any more; they make room within a step. An owner that has fewer than
        the others have there is taken all the same: the queue of the loop, which comes next, has its own turns.
        """
        waiting, owner = len(self._encoding), message.salt
        thread: PromptThread | TextThread = self._prompts if isinstance(message, Generate) else self._texts
        displaced_id = thread.displaced_by(owner) if waiting >= self._most_encoding else None
        if displaced_id is not None:
            self._inbox.put(Output(displaced_id, QueueFull(waiting=waiting)))
        is_refused = waiting >= self._most_encoding and displaced_id is None and not self._has_fewer(owner)
        self._encoding[message.request_id] = owner
        if is_refused:
            self._inbox.put(Output(message.request_id, QueueFull(waiting=waiting)))
            return
        if isinstance(message, Generate):
            self._prompts.put(message)
        else:
            self._texts.put(message)

    def _has_fewer(self, owner: str) -> bool:
        """Whether another owner would still have more on the way, if one of ``owner`` came."""
        owners = Counter(tuple(self._encoding.values()))  # copied at one go: the main thread takes out meanwhile
        return max(owners.values(), default=0) > owners[owner] + 1


def run_worker(sock: socket.socket) -> int:
    """The whole life of a worker; returns its exit status."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # Stable since torch 1.12, and its one reduction over the blocks of a request.
    warnings.filterwarnings("ignore", message="index_reduce")
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    with suppress(OSError):  # should memory run out all the same, this process goes first, not the API
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    connection = Connection(sock)
    pulse = Pulse(connection.send_if_free)
    no_thread: Exception | None = None
    try:
        pulse.start()
    except RuntimeError as error:  # no room for a thread
        no_thread = error
    first = connection.receive()
    if not isinstance(first, Load):
        return 0
    with suppress(OSError):  # the API process has gone: so do we
        try:
            model = _load(first.spec, connection, pulse, no_thread)
        except Exception as error:
            failure = _as_failure(first.spec.model, error)
            log.warning("loading %s failed", first.spec.model, exc_info=error)
            connection.send(LoadFailed(Failure.of(failure)))
            return NO_MEMORY_STATUS if isinstance(failure, OutOfMemory) else 1
        gc.collect()
        gc.freeze()  # a model's hundred thousand objects never go; no need to look at them again and again
        worker = Worker(model, connection, first.spec.max_batch + first.spec.max_queue)
        worker.start()
        pulse.on_beat = worker.look_after_prompts
        pulse.beat()
        connection.send(Loaded(model.facts))
        worker.run()
    return 0


def _load(spec: EngineSpec, connection: Connection, pulse: Pulse, no_thread: Exception | None) -> LoadedModel:
    if no_thread is not None:
        raise no_thread
    pulse.load_begins(spec.device)
    model = load_model(spec, ProgressSender(connection.send))
    peak_bytes = max(pulse.load_ended(), model.facts.memory_bytes)
    return replace(model, facts=replace(model.facts, peak_memory_bytes=peak_bytes))


def _as_failure(model: str, error: Exception) -> InferapiError:
    if isinstance(error, InferapiError):
        return error
    if is_out_of_memory(error):
        return OutOfMemory()
    return ModelLoadFailed(model=model, problem=type(error).__name__)

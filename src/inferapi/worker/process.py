"""A worker's life: load a model, run its step loop, answer messages, end when the socket does.

Three threads. The reader receives; cancels go straight to the step loop. The encoder renders and tokenizes
prompts, in order, so that a long one delays no decode. The main thread steps and sends.
"""

from __future__ import annotations

import gc
import logging
import queue
import socket
import threading
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec
import torch
import transformers

from inferapi.domain.errors import InferapiError, InvalidRequest, ModelLoadFailed, OutOfMemory, QueueFull
from inferapi.domain.generation import Chunk
from inferapi.engine.loop import Output, is_out_of_memory
from inferapi.engine.model_loader import LoadedModel, load_model
from inferapi.engine.request import Request
from inferapi.engine.threads import ThreadGovernor, waited_for_cores_s
from inferapi.worker.messages import (
    HEADER_BYTES,
    Cancel,
    Failure,
    FromWorker,
    Generate,
    Load,
    Loaded,
    LoadFailed,
    StepDone,
    ToWorker,
    body_bytes,
    frame,
)

log = logging.getLogger(__name__)


class Connection:
    """Frames over a blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._file = sock.makefile("rb")
        self._sock = sock
        self._decoder = msgspec.msgpack.Decoder(ToWorker)

    def receive(self) -> ToWorker | None:
        """The next message; ``None`` at the end."""
        with suppress(ConnectionError):
            header = self._file.read(HEADER_BYTES)
            if len(header) == HEADER_BYTES:
                message: ToWorker = self._decoder.decode(self._file.read(body_bytes(header)))
                return message
        return None

    def send(self, message: FromWorker) -> None:
        """Send; raises ``OSError`` when nobody is there."""
        self._sock.sendall(frame(message))


class Worker:
    """Feeds one model's step loop from the socket and the socket from the loop."""

    def __init__(self, model: LoadedModel, connection: Connection, most_encoding: int) -> None:
        self._most_encoding = most_encoding
        self._model = model
        self._connection = connection
        self._inbox: queue.SimpleQueue[Request | Output | Cancel | None] = queue.SimpleQueue()
        self._to_encode: queue.SimpleQueue[Generate] = queue.SimpleQueue()
        self._encoding: set[int] = set()
        self._cancelled: set[int] = set()  # while still being encoded
        self._governor = ThreadGovernor(
            torch.get_num_threads(),
            waited_s=waited_for_cores_s,
            set_threads=torch.set_num_threads,
            now_s=time.monotonic,
        )

    def run(self) -> None:
        """Step until the socket ends."""
        threading.Thread(target=self._read, name="reader", daemon=True).start()
        threading.Thread(target=self._encode, name="encoder", daemon=True).start()
        loop, governor = self._model.loop, self._governor
        while True:
            outputs: list[Output] = []
            wait = loop.is_idle
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
            if outputs or loop.is_idle:
                self._publish(outputs)

    def _take(self, item: Request | Output | Cancel) -> list[Output]:
        if isinstance(item, Cancel):
            if item.request_id in self._encoding:
                self._cancelled.add(item.request_id)
            else:
                self._model.loop.cancel(item.request_id)
            return []
        self._encoding.discard(item.request_id)
        if item.request_id in self._cancelled:
            self._cancelled.discard(item.request_id)
            return []
        if isinstance(item, Output):
            return [item]
        try:
            self._model.loop.submit(item)
        except InferapiError as error:
            return [Output(item.request_id, error)]
        return []

    def _publish(self, outputs: list[Output]) -> None:
        chunks = [(output.request_id, output.item) for output in outputs if isinstance(output.item, Chunk)]
        failures = [
            (output.request_id, Failure.of(output.item)) for output in outputs if isinstance(output.item, InferapiError)
        ]
        self._connection.send(StepDone(self._model.loop.load, chunks, failures))

    def _read(self) -> None:
        while (message := self._connection.receive()) is not None:
            if isinstance(message, Generate):
                waiting = len(self._encoding)
                self._encoding.add(message.request_id)
                if waiting < self._most_encoding:
                    self._to_encode.put(message)
                else:
                    self._inbox.put(Output(message.request_id, QueueFull(waiting=waiting)))
            elif isinstance(message, Cancel):
                self._inbox.put(message)
        self._inbox.put(None)

    def _encode(self) -> None:
        while True:
            message = self._to_encode.get()
            if message.request_id in self._cancelled:  # nobody waits for it, so nobody else shall
                self._inbox.put(Output(message.request_id, InvalidRequest(problem="cancelled")))
            else:
                self._inbox.put(self._encoded(message))

    def _encoded(self, message: Generate) -> Request | Output:
        request, encoder = message.request, self._model.encoder
        try:
            tokens, dropped_turns = encoder.encode(request.prompt, request.sampling)
        except InferapiError as error:
            return Output(message.request_id, error)
        except BaseException:  # one odd prompt must not end the thread of all; a panic in Rust is no Exception
            log.exception("a prompt could not be encoded")
            return Output(
                message.request_id, InvalidRequest(problem="The model's tokenizer cannot encode this prompt.")
            )
        stop = (*request.sampling.stop, *encoder.stop_strings(request.prompt))
        return Request(
            request_id=message.request_id,
            tokens=tokens,
            num_prompt_tokens=len(tokens),
            sampling=replace(request.sampling, stop=stop) if stop else request.sampling,
            arrived_s=request.arrived_s,
            dropped_turns=dropped_turns,
        )


def run_worker(sock: socket.socket) -> int:
    """The whole life of a worker; returns its exit status."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # Stable since torch 1.12, and its one reduction over the blocks of a request.
    warnings.filterwarnings("ignore", message="index_reduce")
    with suppress(OSError):  # should memory run out all the same, this process goes first, not the API
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    connection = Connection(sock)
    first = connection.receive()
    if not isinstance(first, Load):
        return 0
    with suppress(OSError):  # the API process has gone: so do we
        try:
            model = load_model(first.spec)
        except Exception as error:
            failure = _as_failure(first.spec.model, error)
            log.warning("loading %s failed", first.spec.model, exc_info=error)
            connection.send(LoadFailed(Failure.of(failure)))
            return 1
        gc.collect()
        gc.freeze()  # a model's hundred thousand objects never go; no need to look at them again and again
        connection.send(Loaded(model.facts))
        Worker(model, connection, first.spec.max_batch + first.spec.max_queue).run()
    return 0


def _as_failure(model: str, error: Exception) -> InferapiError:
    if isinstance(error, InferapiError):
        return error
    if is_out_of_memory(error):
        return OutOfMemory()
    return ModelLoadFailed(model=model, problem=type(error).__name__)

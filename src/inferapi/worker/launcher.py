"""Launches models: a worker from the fork server, and the conversation until it is ready."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from inferapi.domain.errors import InferapiError, ModelCrashed, ModelLoadFailed, OutOfMemory
from inferapi.domain.model import EngineSpec
from inferapi.domain.ports import TextEngine
from inferapi.domain.states import Report
from inferapi.domain.telemetry import SILENT, Telemetry
from inferapi.worker.client import WorkerEngine
from inferapi.worker.client_connection import WorkerConnection
from inferapi.worker.fork_server_process import ForkedWorker, ForkServerProcess
from inferapi.worker.heartbeat import Heartbeat
from inferapi.worker.messages import NO_MEMORY_STATUS, NOT_FORKED_STATUS, Beat, Load, Loaded, LoadFailed, Progress

log = logging.getLogger(__name__)

_GRACE_S = 2.0


class ForkServerLauncher:
    """An ``EngineLauncher``: one process a model, forked from a process that has imported torch already.

    Args:
        heartbeat_timeout_s: a worker that sends nothing for so long is killed; it sends something every second.
        telemetry: hears what the engines compute.
    """

    def __init__(
        self,
        *,
        heartbeat_timeout_s: float = 15.0,
        log_level: str = "info",
        log_as_text: bool = False,
        telemetry: Telemetry = SILENT,
    ) -> None:
        self._heartbeat_timeout_s = heartbeat_timeout_s
        self._log_arguments = [log_level, "text" if log_as_text else "json"]
        self._telemetry = telemetry
        self._fork_server: ForkServerProcess | None = None

    async def start(self) -> None:
        """Start the fork server, if it is not running; it imports while others work."""
        self._running()

    async def launch(self, spec: EngineSpec, report: Report) -> TextEngine:
        """See ``EngineLauncher``."""
        heartbeat = Heartbeat(self._heartbeat_timeout_s, lambda: _end_silent(spec.model, worker, heartbeat))
        worker = self._fork(spec.model, heartbeat)
        connection: WorkerConnection | None = None
        try:
            connection = await WorkerConnection.open(worker.sock, heartbeat)
            connection.send(Load(spec))
            answer, memory_bytes = await _answer(connection, report)
        except BaseException:
            if connection is None:
                worker.sock.close()
            else:
                connection.abort()
            await asyncio.shield(worker.gone(0.0))
            raise
        if isinstance(answer, Loaded):
            return WorkerEngine(
                answer.facts,
                connection,
                lambda: worker.gone(_GRACE_S),
                memory_bytes=memory_bytes,
                telemetry=self._telemetry,
            )
        connection.abort()
        status = await worker.gone(_GRACE_S)
        raise _why(spec.model, answer, status)

    async def aclose(self) -> None:
        """See ``EngineLauncher``."""
        fork_server, self._fork_server = self._fork_server, None
        if fork_server is not None:
            await fork_server.aclose()

    def _running(self) -> ForkServerProcess:
        if self._fork_server is None or not self._fork_server.is_alive:
            self._fork_server = ForkServerProcess(self._log_arguments)
        return self._fork_server

    def _fork(self, model: str, heartbeat: Heartbeat) -> ForkedWorker:
        with suppress(OSError):
            fork_server = self._running()
            with suppress(BrokenPipeError, ConnectionResetError):
                return fork_server.fork(heartbeat.heard)
            # It was killed just now, and its parent has not heard of it yet.
            fork_server.end_now()
            self._fork_server = ForkServerProcess(self._log_arguments)
            return self._fork_server.fork(heartbeat.heard)
        raise ModelLoadFailed(model=model, problem="no process could be started")


async def _answer(connection: WorkerConnection, report: Report) -> tuple[Loaded | LoadFailed | None, int]:
    """What the worker says in the end, ``None`` if it dies before, and the memory it spoke of last."""
    memory_bytes = 0
    while True:
        message = await connection.receive()
        if isinstance(message, Progress):
            report(message.stage, message.done_bytes, message.total_bytes)
        elif isinstance(message, Beat):
            memory_bytes = message.memory_bytes
        elif message is None or isinstance(message, Loaded | LoadFailed):
            return message, memory_bytes


def _why(model: str, answer: LoadFailed | None, status: int) -> InferapiError:
    if answer is not None:
        return answer.failure.unpack()
    if status == NO_MEMORY_STATUS:
        return OutOfMemory()
    if status == NOT_FORKED_STATUS:
        return ModelLoadFailed(model=model, problem="no process could be started")
    log.error("the worker of %s died while loading, with status %d", model, status)
    return ModelCrashed(model=model)


def _end_silent(model: str, worker: ForkedWorker, heartbeat: Heartbeat) -> None:
    log.error("the worker of %s gave no sign of life for %g s: it is killed", model, heartbeat.timeout_s)
    worker.kill()

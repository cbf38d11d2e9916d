"""Starts workers through the fork server, and knows which of them live."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress

import msgspec

from inferapi.domain.errors import ModelLoadFailed
from inferapi.domain.model import EngineSpec
from inferapi.domain.ports import TextEngine
from inferapi.worker.client import WorkerConnection, WorkerEngine
from inferapi.worker.messages import Exited, Fork, FromForkServer, Kill, Load, Loaded, LoadFailed, encode

log = logging.getLogger(__name__)

_PACKET_BYTES = 4096
_GRACE_S = 2.0
_SECRETS = ("TOKEN", "API_KEY", "SECRET", "PASSWORD")


class ForkServerLauncher:
    """An ``EngineLauncher``: one process a model, forked from a process that has imported torch already."""

    def __init__(self, *, log_level: str = "info", log_as_text: bool = False) -> None:
        self._log_arguments = [log_level, "text" if log_as_text else "json"]
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._listening: asyncio.Task[None] | None = None
        self._ids = itertools.count(1)
        self._exited: dict[int, asyncio.Event] = {}

    async def start(self) -> None:
        """Start the fork server, if it is not running; it imports while others work."""
        if self._process is not None and self._process.poll() is None:
            return
        if self._control is not None:  # of one that died
            self._control.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        # No thread in between: the kernel ends the fork server when the thread that made it ends.
        self._process = subprocess.Popen(  # noqa: S603, ASYNC220 - our own module; the call only forks
            [sys.executable, "-m", "inferapi.worker.forkserver", str(theirs.fileno()), *self._log_arguments],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=_environment(os.environ),
            start_new_session=True,  # a Ctrl-C at the terminal is for the API process to handle
        )
        theirs.close()
        self._control = ours
        self._exited = {}  # of this fork server: the workers of an earlier one ended with it
        self._listening = asyncio.create_task(self._listen(ours, self._exited), name="fork server")

    async def launch(self, spec: EngineSpec) -> TextEngine:
        """See ``EngineLauncher``."""
        try:
            await self.start()
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise ModelLoadFailed(model=spec.model, problem="no process could be started") from error
        worker_id = next(self._ids)
        self._exited[worker_id] = asyncio.Event()
        assert self._control is not None  # noqa: S101 - start() made it
        try:
            with theirs:
                socket.send_fds(self._control, [encode(Fork(worker_id))], [theirs.fileno()])
        except OSError as error:
            ours.close()
            del self._exited[worker_id]
            raise ModelLoadFailed(model=spec.model, problem="the fork server is gone; it starts again") from error
        ours.setblocking(False)
        connection = WorkerConnection(*await asyncio.open_connection(sock=ours))
        try:
            connection.send(Load(spec))
            answer = await connection.receive()
        except BaseException:
            connection.close()
            await asyncio.shield(self._end(worker_id, 0.0))
            raise
        if isinstance(answer, Loaded):
            return WorkerEngine(answer.facts, connection, lambda: self._end(worker_id, _GRACE_S))
        connection.close()
        await self._end(worker_id, _GRACE_S)
        if isinstance(answer, LoadFailed):
            raise answer.failure.unpack()
        raise ModelLoadFailed(model=spec.model, problem="its process ended unexpectedly")

    async def aclose(self) -> None:
        """See ``EngineLauncher``."""
        if self._process is None or self._control is None or self._listening is None:
            return
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        self._control.close()  # the fork server then kills its workers and ends
        process, self._process = self._process, None
        try:
            await asyncio.to_thread(process.wait, _GRACE_S)
        except subprocess.TimeoutExpired:  # still importing: it looks at nothing yet
            process.kill()
            process.wait()
        _all_ended(self._exited)

    async def _listen(self, control: socket.socket, workers: dict[int, asyncio.Event]) -> None:
        event_loop = asyncio.get_running_loop()
        decoder = msgspec.msgpack.Decoder(FromForkServer)
        with suppress(ConnectionError):
            while packet := await event_loop.sock_recv(control, _PACKET_BYTES):
                exited: Exited = decoder.decode(packet)
                log.info("worker %d ended with status %d", exited.worker_id, exited.status)
                if exited.worker_id in workers:
                    workers.pop(exited.worker_id).set()
        log.error("the fork server ended; its workers with it")
        _all_ended(workers)

    async def _end(self, worker_id: int, grace_s: float) -> None:
        """Wait for a worker that was told to end, then kill it, then wait until its parent has buried it."""
        exited = self._exited.get(worker_id)
        if exited is None:
            return
        try:
            await asyncio.wait_for(exited.wait(), grace_s)
        except TimeoutError:
            if self._control is not None:
                with suppress(OSError):  # the fork server is gone, and its workers with it: _listen says so
                    self._control.send(encode(Kill(worker_id)))
            await exited.wait()


def _all_ended(workers: dict[int, asyncio.Event]) -> None:
    for event in workers.values():
        event.set()
    workers.clear()


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """What a worker needs to know: no secret, and that it has no business on the network."""
    kept = {name: value for name, value in ours.items() if not any(secret in name.upper() for secret in _SECRETS)}
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }

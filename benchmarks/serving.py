"""Measure one server on this machine: throughput by concurrency, load time, health latency under load.

    python benchmarks/serving.py [--neighbours 1] [--write docs/benchmarks/serving.md]

Starts a server of its own on a free loopback port, asks it over HTTP, and ends it. Bounded in requests and time.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
CONCURRENCY = (1, 8, 32)
NEW_TOKENS = 64
ROUNDS = 3
LOADS = 5
HEALTH_INTERVAL_S = 0.05
PROMPT = (
    "Number {n}. Write a long story about a dragon who lives in a cave near a small town, likes to read books about "
    "history and mathematics, and is visited by a child one day."
)


def start_server(port: int, log: Path) -> subprocess.Popen[bytes]:
    """A server with the demo model, on loopback."""
    settings = {"INFERAPI_PORT": str(port), "INFERAPI_MODEL": MODEL, "INFERAPI_LOG_FORMAT": "json"}
    settings["INFERAPI_SESSION_STORE_URL"] = "memory://"  # leave no trace in the user's data folder
    command = [sys.executable, "-m", "inferapi", "serve"]
    return subprocess.Popen(command, env=os.environ | settings, stdout=log.open("wb"), stderr=subprocess.STDOUT)


async def wait_ready(client: httpx.AsyncClient) -> float:
    """Seconds until the model named at start is loaded."""
    started = time.perf_counter()
    while time.perf_counter() - started < 120:
        try:
            if (await client.get("/health/ready")).status_code == 200:
                return time.perf_counter() - started
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.05)
    raise SystemExit("the server did not become ready")


async def infer(client: httpx.AsyncClient, n: int) -> int:
    """One greedy request; how many tokens it made."""
    body = {
        "text": PROMPT.format(n=n),
        "max_new_tokens": NEW_TOKENS,
        "temperature": 0,
        "repetition_penalty": 1.0,
        "ignore_eos": True,
        "details": True,
    }
    reply = await client.post("/infer", json=body)
    reply.raise_for_status()
    return int(reply.json()["details"]["usage"]["completion_tokens"])


async def throughput(client: httpx.AsyncClient, concurrency: int) -> float:
    """Tokens per second of so many requests at once."""
    started = time.perf_counter()
    tokens = await asyncio.gather(*(infer(client, n) for n in range(concurrency)))
    return sum(tokens) / (time.perf_counter() - started)


async def load_seconds(client: httpx.AsyncClient) -> float:
    """Unload, then load: what the client waits."""
    await client.post("/unload_model", json={})
    started = time.perf_counter()
    (await client.post("/load_model", json={"model_name": MODEL})).raise_for_status()
    return time.perf_counter() - started


async def health_latencies(client: httpx.AsyncClient, during: asyncio.Task[object]) -> list[float]:
    """Seconds of each ``/health/live`` until the task is done."""
    latencies = []
    while not during.done():
        started = time.perf_counter()
        (await client.get("/health/live")).raise_for_status()
        latencies.append(time.perf_counter() - started)
        await asyncio.sleep(HEALTH_INTERVAL_S)
    await during
    return latencies


def percentile(values: list[float], share: float) -> float:
    """The smallest value that so large a share of the values does not exceed."""
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


async def measure(port: int) -> list[str]:
    """Lines of a Markdown report."""
    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=300, limits=limits) as client:
        ready_s = await wait_ready(client)
        status = (await client.get("/status")).json()["models"][0]
        await throughput(client, 4)  # warm

        # Rounds over all concurrencies, not repeats of each: a noisy minute then spoils no single row.
        rounds = [[await throughput(client, concurrency) for concurrency in CONCURRENCY] for _ in range(ROUNDS)]
        medians = [statistics.median(column) for column in zip(*rounds, strict=True)]
        ratios = [statistics.median(row[i] / row[0] for row in rounds) for i in range(len(CONCURRENCY))]

        loads = [await load_seconds(client) for _ in range(LOADS)]
        generating = await health_latencies(client, asyncio.ensure_future(throughput(client, 32)))

        async def loading() -> None:
            for _ in range(3):
                await load_seconds(client)

        while_loading = await health_latencies(client, asyncio.ensure_future(loading()))

    lines = [
        f"Model {status['name']}, {status['dtype']} on {status['device']}, attention {status['attention']}.",
        f"{os.cpu_count()} CPU cores ({cpu_name()}), Python {platform.python_version()}.",
        "",
        f"| concurrent requests of {NEW_TOKENS} greedy tokens | tokens/s (median of {ROUNDS}) | ratio to one alone |",
        "|---:|---:|---:|",
        *(
            f"| {concurrency} | {median:.1f} | {ratio:.1f} |"
            for concurrency, median, ratio in zip(CONCURRENCY, medians, ratios, strict=True)
        ),
        "",
        "| what | value |",
        "|---|---:|",
        f"| start of the process to ready, model loaded | {ready_s:.1f} s |",
        f"| `POST /load_model` with the fork server warm, median of {LOADS} | {statistics.median(loads):.2f} s |",
        f"| the same, slowest | {max(loads):.2f} s |",
    ]
    for what, latencies in (("generating at 32", generating), ("loading", while_loading)):
        p50, p99 = 1000 * statistics.median(latencies), 1000 * percentile(latencies, 0.99)
        lines.append(f"| `/health/live` while {what}: p50 / p99 of {len(latencies)} | {p50:.0f} / {p99:.0f} ms |")
    return lines


def cpu_name() -> str:
    """The processor's name for people."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def main() -> None:
    """Run the server, measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="also write the report into this Markdown file")
    parser.add_argument("--neighbours", type=int, default=0, help="busy processes that want the same cores")
    arguments = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = start_server(port, Path(f"/tmp/inferapi-benchmark-{port}.log"))  # noqa: S108 - a log of this run
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(arguments.neighbours)]
    try:
        lines = asyncio.run(measure(port))
    finally:
        for process in busy:
            process.kill()
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    print("\n".join(lines))
    if arguments.write:
        options = f"--neighbours {arguments.neighbours} " if arguments.neighbours else ""
        command = f"    python benchmarks/serving.py {options}--write {arguments.write}"
        beside = f", beside {arguments.neighbours} busy process" if arguments.neighbours else ""
        head = [f"# Serving, measured{beside}", "", "Made by:", "", command, ""]
        arguments.write.write_text("\n".join([*head, *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()

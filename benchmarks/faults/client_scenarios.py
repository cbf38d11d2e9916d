"""Clients that a server has to survive: they leave, they are slow, or they are too many."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil

from . import report
from .crowds import crowd, flood
from .leaving import abandon
from .result import Result, failures_of, running

ABANDONED, ABANDONED_TOKENS = 200, 1000
IDLE, SLOW, BYTE_INTERVAL_S, BESIDE = 900, 100, 1.0, 40
FLOOD, FLOOD_BATCH, FLOOD_QUEUE, FLOOD_TOKENS = 300, 8, 32, 64


def abandoned(folder: Path) -> Result:
    """Clients leave streams, whole answers and the queue."""
    with running(folder, MAX_QUEUE=ABANDONED) as server:
        worker = server.worker().pid
        found = asyncio.run(abandon(server.url, requests=ABANDONED, new_tokens=ABANDONED_TOKENS))
        same = server.worker().pid == worker
    lines = [
        f"{ABANDONED} requests of {ABANDONED_TOKENS} tokens, every other one a stream. When all of them have been",
        "taken, all clients close their connections, and one more request is sent.",
        "",
        *report.table(
            ("", "measured"),
            [
                ("running when they left", found.running),
                ("waiting when they left", found.waiting),
                ("clients that left before an answer", found.tally.left),
                ("the next request", found.next_answer.label),
                ("… answered after", report.seconds(found.next_answer.took_s)),
                ("… and nothing runs or waits any more after", report.seconds(found.idle_after_s)),
                ("the worker is the same process", "yes" if same else "no"),
            ],
        ),
    ]
    failures = failures_of(requests=found.tally)
    failures += [] if same else ["the worker was replaced"]
    failures += [] if found.tally.left == ABANDONED else [f"{found.tally.left} of {ABANDONED} left"]
    return Result("Clients that leave", lines, failures)


def crowded(folder: Path) -> Result:
    """Silent and slow connections."""
    with running(folder) as server:
        api = psutil.Process(server.process.pid)
        found = asyncio.run(
            crowd(
                server.url,
                idle=IDLE,
                slow=SLOW,
                interval_s=BYTE_INTERVAL_S,
                requests=BESIDE,
                count_descriptors=api.num_fds,
            )
        )
    before, during, after = found.descriptors
    lines = [
        f"{IDLE} connections that say nothing and {SLOW} that send a byte every {BYTE_INTERVAL_S:g} s (half of them",
        f"from the headers on, half from the body on). Beside them {BESIDE} short requests one after the other, each",
        "with a probe of `/health/live`. Then the clients close all connections.",
        "",
        *report.outcomes({"short requests": found.beside, "probes": found.probes}),
        "",
        *report.table(
            ("", "measured"),
            [
                ("slowest short request", report.seconds(found.beside.slowest_s.get("answered", 0.0))),
                ("slowest probe", report.seconds(found.probes.slowest_s.get("answered", 0.0))),
                *((f"connections, {end}", count) for end, count in sorted(found.ends.items())),
                ("bytes that the slow ones sent", found.slow_bytes),
                ("open files of the API process before", before),
                ("… while they were there", during),
                ("… after they had gone", after),
            ],
        ),
    ]
    return Result("A thousand connections", lines, failures_of(requests=found.beside, probes=found.probes))


def flooded(folder: Path) -> Result:
    """More requests than the queue has room for."""
    with running(folder, MAX_BATCH=FLOOD_BATCH, MAX_QUEUE=FLOOD_QUEUE) as server:
        tally = asyncio.run(flood(server.url, requests=FLOOD, new_tokens=FLOOD_TOKENS))
    refused = max((took_s for label, took_s in tally.slowest_s.items() if "queue_full" in label), default=0.0)
    untold = sum(tally.untold.values())
    lines = [
        f"{FLOOD} requests of {FLOOD_TOKENS} tokens at once, every other one a stream, at a server that runs",
        f"{FLOOD_BATCH} and lets {FLOOD_QUEUE} wait.",
        "",
        *report.outcomes({"all at once": tally}),
        "",
        *report.table(
            ("", "measured"),
            [
                (
                    "slowest refusal, at the client, which opens all connections at once on the same cores",
                    report.seconds(refused),
                ),
                ("refusals without `Retry-After`", untold),
            ],
        ),
    ]
    failures = failures_of(requests=tally) + ([f"{untold} refusals do not say when"] if untold else [])
    failures += [] if tally.answered >= FLOOD_BATCH + FLOOD_QUEUE else [f"only {tally.answered} were answered"]
    return Result("A full queue", lines, failures)

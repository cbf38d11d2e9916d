"""Serve a mixed load for a long time, and look whether anything is lost or grows.

    python -m benchmarks.faults.soak [--minutes 30] [--write docs/benchmarks/soak.md]

in the project's root. Starts a server of its own on a free loopback port and ends it. Ends with status 1 if

- a request was lost or met a fate that it should not have,
- a refusal with 429 or 503 did not say in Retry-After when to come again,
- there were too few samples of memory for a trend, or
- the memory of all processes together grows: its whole 95 % interval is above zero, and its slope above 30 MB/h.

In a run of few minutes it does: the KV cache is still being filled.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from benchmarks.own_server import MODEL, Server

from . import report
from .asking import Tally
from .load import Load, client
from .memory import ALL, Samples
from .mix import Mixed
from .trend import LEAST_SAMPLES, Trend, fit

CLIENTS = 12
# Fewer places than clients, so that the queue is full now and then; and a KV cache that is written whole within the
# first minutes: until then memory is meant to grow.
BATCH, QUEUE = 4, 6
SAMPLE_S = 5.0
WARM_SHARE = 0.25
MB = 1e6
HOUR_S = 3600.0
MOST_GROWTH_MB_PER_H = 30.0


@dataclass(frozen=True, slots=True)
class Soaked:
    """What became of the requests, what they were, and what memory did meanwhile."""

    tally: Tally
    kinds: Counter[str]
    samples: Samples
    took_s: float


async def soak(server: Server, minutes: float) -> Soaked:
    """Load the server for so long."""
    mixed = [Mixed(seed, MODEL) for seed in range(CLIENTS)]
    samples = Samples(server.tree)
    started_s = time.monotonic()
    async with client(server.url, CLIENTS) as http, Load(http, mixed) as load:
        while (left_s := started_s + 60 * minutes - time.monotonic()) > 0:
            await asyncio.to_thread(samples.take)
            await asyncio.sleep(min(SAMPLE_S, left_s))
    kinds: Counter[str] = Counter()
    for one in mixed:
        kinds += one.kinds
    return Soaked(load.tally, kinds, samples, time.monotonic() - started_s)


def trends(samples: Samples, warm_s: float) -> dict[str, Trend]:
    """A line for each role, without what was sampled before."""
    times_s, bytes_of = samples.since(warm_s)
    if len(times_s) < LEAST_SAMPLES:
        return {}
    return {name: fit(times_s, [value / MB for value in values]) for name, values in bytes_of.items()}


def failures(soaked: Soaked, minutes: float) -> list[str]:
    """What was not as promised, in words; nothing where all was."""
    tally = soaked.tally
    counts = {
        "lost": tally.lost,
        "otherwise not as expected": sum(tally.wrong.values()),
        "refused without `Retry-After`": sum(tally.untold.values()),
    }
    found = [f"{count} requests {what}" for what, count in counts.items() if count]
    trend = trends(soaked.samples, WARM_SHARE * 60 * minutes).get(ALL)
    if trend is None:
        found.append("too few samples of memory for a trend")
    elif trend.slope > trend.margin and HOUR_S * trend.slope > MOST_GROWTH_MB_PER_H:
        found.append(f"memory grows by {HOUR_S * trend.slope:.0f} MB/h")
    return found


def lines(soaked: Soaked, minutes: float, command: str) -> list[str]:
    """The report."""
    tally = soaked.tally
    warm_s = WARM_SHARE * 60 * minutes
    failed = failures(soaked, minutes)
    return [
        "# A long run under mixed load",
        "",
        "Made by:",
        "",
        f"    {command}",
        "",
        report.where(MODEL),
        f"{CLIENTS} clients, each one request after the other; {BATCH} requests run and {QUEUE} wait at most.",
        f"{soaked.took_s / 60:.1f} minutes, {tally.sent / soaked.took_s:.1f} requests a second.",
        "",
        f"**Failed**: {'; '.join(failed)}." if failed else "**As promised.**",
        "A run fails where a request was lost or met a fate that it should not have, where a refusal with 429 or 503",
        "lacked `Retry-After`, where there were too few samples for a trend of memory, and where *all together* grew,",
        f"the whole interval above zero, by more than {MOST_GROWTH_MB_PER_H:g} MB/h.",
        "",
        "## Requests",
        "",
        *report.table(
            ("", "requests"),
            [
                ("sent", tally.sent),
                ("answered whole", tally.answered),
                *((f"refused: {label}", count) for label, count in tally.refusals.items()),
                ("the client left", tally.left),
                ("**lost**", tally.lost),
                ("**unexpected 5xx**", sum(tally.server_errors.values())),
                ("**otherwise not as expected**", sum(tally.wrong.values()) - sum(tally.server_errors.values())),
                ("refused with 429 or 503 without `Retry-After`", sum(tally.untold.values())),
            ],
        ),
        "",
        *([f"Not as expected: {report.told(tally.wrong)}.", ""] if tally.wrong else []),
        "A request is lost if its connection broke, its stream had no end, or nothing came at all. What was sent:",
        "",
        *report.table(("what", "requests"), soaked.kinds.most_common()),
        "",
        "## Memory",
        "",
        *report.table(
            ("process", "samples (worth)", "first, MB", "last, MB", "slope, MB/h", "95 % interval", "zero is"),
            [_row(name, trend) for name, trend in trends(soaked.samples, warm_s).items()],
        ),
        "",
        f"A least-squares line through a sample every {SAMPLE_S:g} s, without the first {warm_s / 60:.1f} minutes, in",
        "which the KV cache and the caches of libraries fill. First and last are the line's values. Samples hang",
        "together, so they are worth fewer than they are (`benchmarks/faults/trend.py` has the source); the interval",
        "is made of what they are worth, and without bounds where that is too little. Resident sets by process;",
        "*all together* is anonymous memory, shared pages once (`Pss_Anon`).",
        "",
    ]


def _row(name: str, trend: Trend) -> tuple[str, ...]:
    low, high = (HOUR_S * (trend.slope + sign * trend.margin) for sign in (-1, 1))
    return (
        name,
        f"{trend.samples} ({trend.independent:.0f})",
        f"{trend.first:.1f}",
        f"{trend.last:.1f}",
        f"{HOUR_S * trend.slope:+.2f}",
        f"{low:+.2f} to {high:+.2f}",
        "inside" if trend.may_be_flat else "outside",
    )


def main() -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--write", type=Path, help="also write the report into this Markdown file")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _leave)  # the default action would leave the server behind
    minutes = min(max(arguments.minutes, 0.1), 24 * 60.0)
    with tempfile.TemporaryDirectory() as folder:
        settings = {"MAX_BATCH": BATCH, "MAX_QUEUE": QUEUE, "SESSION_STORE_URL": f"sqlite:///{folder}/sessions.db"}
        server = Server(Path(folder), **{name: str(value) for name, value in settings.items()})
        try:
            server.wait_ready()
            soaked = asyncio.run(soak(server, minutes))
        finally:
            server.stop()
    command = f"python -m benchmarks.faults.soak --minutes {arguments.minutes:g}"
    text = "\n".join(lines(soaked, minutes, command + (f" --write {arguments.write}" if arguments.write else "")))
    print(text)
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")
    return 1 if failures(soaked, minutes) else 0


def _leave(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())

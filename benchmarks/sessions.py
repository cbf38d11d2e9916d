"""Measure what a turn costs in each session store, for short and long histories.

    python benchmarks/sessions.py [--turns 300] [--write docs/benchmarks/sessions.md]

A turn is one ``begin`` (take the lease, read the history) and one ``commit`` (check, append, end the lease); the time
of the answer in between is not part of it. Redis is a real server of this script's on a loopback port with an
append-only file (``appendfsync everysec``, its default). Bounded in turns and time.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
from own_redis import RedisServer

from inferapi.adapters.memory_sessions import MemorySessionStore
from inferapi.adapters.redis_sessions import RedisSessionStore
from inferapi.adapters.sqlite_sessions import SqliteSessionStore
from inferapi.adapters.system_clock import SystemClock
from inferapi.domain.chat import Session, SessionChange, SessionRef, Turn
from inferapi.domain.ports import SessionStore

HISTORIES = (10, 100, 1000)
TTL_S = 3600.0
LEASE_S = 8.0
USER, ASSISTANT = "How does a paged KV cache work? " * 4, "It keeps keys and values in blocks. " * 12


@asynccontextmanager
async def stores(folder: Path) -> AsyncIterator[dict[str, SessionStore]]:
    """All three, each empty."""
    clock = SystemClock()
    redis = await asyncio.to_thread(RedisServer(folder, appendfsync="everysec").start)
    made: dict[str, SessionStore] = {
        "memory": MemorySessionStore(clock, TTL_S),
        "sqlite": SqliteSessionStore(folder / "sessions.db", clock, TTL_S),
        "redis": RedisSessionStore(f"{redis.url}/0", TTL_S, clock),
    }
    try:
        yield made
    finally:
        for store in made.values():
            await store.aclose()
        await asyncio.to_thread(redis.stop)


def turn(number: int) -> Turn:
    return Turn(f"turn-{number}", USER, ASSISTANT, "org/model", time.time(), 100, 100)


async def one_turn(store: SessionStore, ref: SessionRef, number: int) -> tuple[float, float]:
    """Append a turn, then take it back; the seconds of the append's two parts."""
    started_s = time.perf_counter()
    opened = await store.begin(ref, f"holder-{number}", LEASE_S)
    begun_s = time.perf_counter()
    if opened is None or opened.session is None:
        raise SystemExit("the session is not there")
    longer = await store.commit(opened.lease, opened.session, SessionChange(turn(number)), time.time())
    ended_s = time.perf_counter()
    again = await store.begin(ref, f"rewinder-{number}", LEASE_S)
    if again is None:
        raise SystemExit("the lease did not end")
    await store.commit(again.lease, longer, SessionChange(dropped_newest=1), time.time())
    return begun_s - started_s, ended_s - begun_s


async def measure(folder: Path, turns: int) -> dict[tuple[str, int], list[tuple[float, float]]]:
    """Turns of every store and history, in turn, so that they share the machine's moods."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    async with stores(folder) as every:
        for store in every.values():
            for length in HISTORIES:
                session = Session(SessionRef("", f"s{length}"), "Be brief.", version=1)
                await store.create(replace(session, turns=tuple(turn(number) for number in range(length))))
        for number in range(turns):
            for name, store in every.items():
                for length in HISTORIES:
                    took = await one_turn(store, SessionRef("", f"s{length}"), number)
                    found.setdefault((name, length), []).append(took)
    return found


def row(name: str, length: int, times: list[tuple[float, float]]) -> str:
    def told(values: list[float]) -> str:
        ordered = sorted(values)
        return f"{1000 * statistics.median(ordered):.2f} | {1000 * ordered[int(0.99 * len(ordered))]:.2f}"

    begins, commits = zip(*times, strict=True)
    whole = [begin + commit for begin, commit in times]
    return f"| {name} | {length} | {told(list(begins))} | {told(list(commits))} | {told(whole)} |"


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=300, help="measured turns for each store and history")
    parser.add_argument("--write", type=Path, help="also write the report into this Markdown file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(Path(folder), min(arguments.turns, 2000)))
    lines = [
        "| store | turns of history | begin p50, ms | p99 | commit p50, ms | p99 | turn p50, ms | p99 |",
        "|---|---:|" + "---:|" * 6,
        *(row(name, length, times) for (name, length), times in found.items()),
    ]
    print("\n".join(lines))
    if arguments.write:
        text = [
            "# What a turn costs in the session store\n\nMade by:\n",
            f"    python benchmarks/sessions.py --turns {arguments.turns} --write {arguments.write}",
            "",
            "*begin* takes the session's lease and reads its history, *commit* checks lease and version, appends and",
            "ends the lease; the answer is generated in between and not part of it. A turn of the history has",
            f"{len(USER) + len(ASSISTANT)} characters. SQLite syncs every transaction to the disk. Redis is a real",
            "server on a loopback port with an append-only file, and a turn is four round trips to it whatever the",
            "history (`tests/integration/sessions/test_redis_round_trips.py` counts them). Stores and histories take",
            f"turns, {arguments.turns} each. {psutil.cpu_count()} CPU cores, Python {platform.python_version()}.",
            "",
            *lines,
        ]
        arguments.write.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""What a server needs and has to do without for a while: its session store, the process of its model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from benchmarks.own_redis import RedisServer

from . import report
from .outages import crashes, store_away
from .result import Result, failures_of, failures_of_turns, running

CHATTERS, OTHERS, ROUNDS = 8, 4, 3
CRASH_CLIENTS, KILLS, CRASH_TOKENS = 12, 3, 64


def frozen(folder: Path) -> Result:
    """Redis stands still."""
    return _redis(folder, "Redis stands still (SIGSTOP, SIGCONT)", RedisServer.freeze, RedisServer.thaw)


def killed(folder: Path) -> Result:
    """Redis is killed and started again."""
    return _redis(folder, "Redis is killed (SIGKILL) and started again", RedisServer.kill, RedisServer.start)


def _redis(
    folder: Path, title: str, begin: Callable[[RedisServer], object], end: Callable[[RedisServer], object]
) -> Result:
    redis = RedisServer(folder).start()
    try:
        with running(folder, SESSION_STORE_URL=redis.url) as server:
            found = asyncio.run(
                store_away(
                    server.url,
                    chatters=CHATTERS,
                    others=OTHERS,
                    rounds=ROUNDS,
                    begin=lambda: begin(redis),
                    end=lambda: end(redis),
                )
            )
    finally:
        redis.stop()
    slowest = max((s for label, s in found.chats.slowest_s.items() if "session_store" in label), default=0.0)
    lines = [
        f"{CHATTERS} clients chat in sessions of their own and {OTHERS} continue texts. Redis goes, stays away until",
        f"{ROUNDS * CHATTERS} chats were refused and {ROUNDS * OTHERS} texts continued, and comes back with its",
        f"append-only file; then {ROUNDS * CHATTERS} more chats are answered.",
        "",
        *report.outcomes({"chats": found.chats, "continuations": found.others}),
        "",
        *report.table(
            ("", "measured"),
            [
                ("`/health/ready` meanwhile", found.readiness),
                ("continuations answered meanwhile", found.others_during),
                ("slowest `session_store_unavailable`", report.seconds(slowest)),
                *((f"stored turns that are {what}", count) for what, count in found.turns.items()),
            ],
        ),
    ]
    failures = failures_of(chats=found.chats, continuations=found.others) + failures_of_turns(found.turns)
    failures += [] if found.readiness == "degraded" else [f"/health/ready says {found.readiness}"]
    return Result(title, lines, failures)


def crashed(folder: Path) -> Result:
    """The worker is killed."""
    with running(folder) as server:
        found = asyncio.run(
            crashes(
                server.url,
                clients=CRASH_CLIENTS,
                kills=KILLS,
                rounds=ROUNDS,
                new_tokens=CRASH_TOKENS,
                kill=lambda: server.worker().kill(),
            )
        )
    lines = [
        f"{CRASH_CLIENTS} clients, half of them in chats of their own, while the process of the model is killed",
        f"{KILLS} times.",
        "",
        *report.outcomes({"all": found.tally}),
        "",
        *report.table(
            ("", "measured"),
            [
                ("requests that were told of a crash", found.told),
                ("slowest answer, loads of the model included", report.seconds(found.tally.slowest_s["answered"])),
                ("a request after all of it", found.next_answer.label),
                *((f"stored turns that are {what}", count) for what, count in found.turns.items()),
            ],
        ),
    ]
    failures = failures_of(requests=found.tally) + failures_of_turns(found.turns)
    failures += [] if found.next_answer.is_right else [f"the next request: {found.next_answer.label}"]
    return Result("The worker is killed (SIGKILL)", lines, failures)

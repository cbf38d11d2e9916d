"""One server from its start to its end: how long until it answers, how fast, how much memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .environments import Missing
from .http_stream import Refused
from .load import Answer, ask, figures, together, wall_s, wave
from .machine import Others
from .peers import MOST_AT_ONCE, Peer
from .prompts import Prompts
from .server import MemoryWatch, Server

PROMPT_TOKENS = 40
LONG_PROMPT_TOKENS = 1000
MOST_WAVES = 4
REQUESTS = 16  # at least so many where fewer run at once, but no more than so many waves
LONG_CLIENTS, SHORT_CLIENTS, REQUESTS_PER_CLIENT = 4, 8, 2
WARM_UP_TOKENS = 8
WATCH_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Plan:
    """What to ask every server.

    Attributes:
        concurrency: requests at once, round by round.
        new_tokens: of every answer.
    """

    concurrency: Sequence[int] = (1, 8, MOST_AT_ONCE)
    new_tokens: int = 64
    long_mix: bool = True


@dataclass
class Measured:
    """What one start of a server gave; figures by concurrency, and of the mix by kind of prompt.

    Attributes:
        missing: why there is nothing, or not all.
        others_cores: by round, the cores that other processes took; more than a tenth spoils the round.
    """

    missing: str = ""
    start_s: float | None = None
    peak_memory_bytes: int = 0
    rounds: dict[str, dict[str, Any]] = field(default_factory=dict)
    others_cores: dict[str, float] = field(default_factory=dict)
    client_cores: dict[str, float] = field(default_factory=dict)


def measure(peer: Peer, plan: Plan, seed: str) -> Measured:
    """Start it, ask it, end it. What goes wrong is told in the result."""
    measured = Measured()
    try:
        with Server(peer) as server:
            try:
                asyncio.run(_measure(server, plan, Prompts(seed), measured))
            finally:
                measured.peak_memory_bytes = server.peak_memory_bytes
    except Missing as problem:
        measured.missing = str(problem)
    except (OSError, Refused) as problem:
        measured.missing = f"it failed: {problem}"
    return measured


async def _measure(server: Server, plan: Plan, prompts: Prompts, measured: Measured) -> None:
    with MemoryWatch(server, WATCH_INTERVAL_S):
        measured.start_s = await server.first_answer()
        await _warm_up(server, plan, prompts)
    for concurrency in plan.concurrency:
        waves = min(max(REQUESTS // concurrency, 1), MOST_WAVES)
        answers, took_s = [], 0.0
        with _Costs(server, measured, str(concurrency)):
            for _ in range(waves):
                wave_answers = await wave(
                    server.port, server.peer, prompts.take(PROMPT_TOKENS, concurrency), plan.new_tokens
                )
                answers += wave_answers
                took_s += wall_s(wave_answers)
        measured.rounds[str(concurrency)] = figures(answers, took_s).as_dict()
        server.note_memory()
    if plan.long_mix:
        with _Costs(server, measured, "mix"):
            short, long = await _long_mix(server, plan, prompts)
        took_s = wall_s([*short, *long])
        measured.rounds["mix"] = figures([*short, *long], took_s).as_dict()
        measured.rounds["mix, short"] = figures(short, took_s).as_dict()
        measured.rounds["mix, long"] = figures(long, took_s).as_dict()
        server.note_memory()


async def _warm_up(server: Server, plan: Plan, prompts: Prompts) -> None:
    """A short answer to every kind of request, with every number of requests at once."""
    for concurrency in plan.concurrency:
        await wave(server.port, server.peer, prompts.take(PROMPT_TOKENS, concurrency), WARM_UP_TOKENS)
    if plan.long_mix:
        mixed = [*prompts.take(LONG_PROMPT_TOKENS, LONG_CLIENTS), *prompts.take(PROMPT_TOKENS, SHORT_CLIENTS)]
        await wave(server.port, server.peer, mixed, WARM_UP_TOKENS)


async def _long_mix(server: Server, plan: Plan, prompts: Prompts) -> tuple[list[Answer], list[Answer]]:
    """Clients that each ask again when they are answered; some of them with long prompts."""

    async def client(own: list[str]) -> list[Answer]:
        return [await ask(server.port, server.peer, prompt, plan.new_tokens) for prompt in own]

    long = [prompts.take(LONG_PROMPT_TOKENS, REQUESTS_PER_CLIENT) for _ in range(LONG_CLIENTS)]
    short = [prompts.take(PROMPT_TOKENS, REQUESTS_PER_CLIENT) for _ in range(SHORT_CLIENTS)]
    answers = await together(client(own) for own in [*long, *short])
    of_long, of_short = answers[:LONG_CLIENTS], answers[LONG_CLIENTS:]
    return [a for own in of_short for a in own], [a for own in of_long for a in own]


class _Costs:
    """Notes what the client itself and other processes took meanwhile."""

    def __init__(self, server: Server, measured: Measured, name: str) -> None:
        self._server = server
        self._measured = measured
        self._name = name

    def __enter__(self) -> None:
        self._others = Others(self._server.processes)
        self._started_s, self._cpu_s = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        took_s = time.perf_counter() - self._started_s
        self._measured.client_cores[self._name] = (time.process_time() - self._cpu_s) / took_s
        self._measured.others_cores[self._name] = self._others.cores()

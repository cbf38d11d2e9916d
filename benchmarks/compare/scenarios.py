"""What only this server is asked for: short requests beside a long prompt, and what HTTP costs on top of the engine."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import httpx

from .environments import ROOT
from .http_stream import HOST
from .load import Answer, ask, percentile, wall_s, wave
from .measure import PROMPT_TOKENS
from .peers import OURS, PEERS, Peer
from .prompts import Prompts
from .server import Server

LONG_PROMPT_TOKENS = 4000
SHORT_NEW_TOKENS = 4
MOST_LONG_PROMPTS = 16
ENGINE_PATIENCE_S = 600.0


def ours() -> Peer:
    """This server, in bf16."""
    return next(peer for peer in PEERS if peer.name == OURS)


async def short_beside_long(samples: int, seed: str) -> dict[str, Any]:
    """Milliseconds to the first text of short requests, alone and while a long prompt is read."""
    prompts = Prompts(f"{seed} beside")
    peer = ours()
    with Server(peer) as server:
        await server.first_answer()

        async def short() -> Answer:
            return await ask(server.port, peer, prompts.take(PROMPT_TOKENS)[0], SHORT_NEW_TOKENS)

        await ask(server.port, peer, prompts.take(LONG_PROMPT_TOKENS)[0], 1)  # warms up
        for _ in range(8):
            await short()
        alone = [(await short()).first_token_s for _ in range(samples)]
        beside: list[float] = []
        long_s: list[float] = []
        while len(beside) < samples and len(long_s) < MOST_LONG_PROMPTS:
            long = asyncio.ensure_future(ask(server.port, peer, prompts.take(LONG_PROMPT_TOKENS)[0], 1))
            await asyncio.sleep(0)  # it is sent first
            answers = []
            while not long.done():
                answers.append(await short())
            long_s.append((await long).first_token_s)
            first_s = long.result().arrivals_s[0]
            beside += [answer.first_token_s for answer in answers if answer.sent_s < first_s]
    return {"alone": _times(alone), "beside": _times(beside), "long": _times(long_s)}


def _times(values_s: Sequence[float]) -> dict[str, Any]:
    return {
        "samples": len(values_s),
        "p50_ms": 1000 * percentile(values_s, 0.5),
        "p99_ms": 1000 * percentile(values_s, 0.99),
    }


async def overhead(concurrency: Sequence[int], new_tokens: int, repeats: int, seed: str) -> dict[str, Any]:
    """Seconds that the same requests take over HTTP and in the engine alone, in turn, by concurrency."""
    over_http: dict[str, list[float]] = {str(rows): [] for rows in concurrency}
    alone: dict[str, list[float]] = {str(rows): [] for rows in concurrency}
    for repeat in range(repeats):
        with Server(ours()) as server:
            await server.first_answer()
            capacity_tokens = _kv_cache_tokens(server.port)
            for is_warm in (False, True):
                for rows in concurrency:
                    prompts = Prompts(f"{seed} overhead {repeat} {is_warm} {rows}").take(PROMPT_TOKENS, rows)
                    took_s = wall_s(await wave(server.port, server.peer, prompts, new_tokens))
                    if is_warm:
                        over_http[str(rows)].append(took_s)
        told = _engine_alone(concurrency, new_tokens, capacity_tokens, f"{seed} overhead {repeat}")
        for rows in concurrency:
            alone[str(rows)].append(told[str(rows)])
    return {
        rows: {
            "http_s": statistics.median(over_http[rows]),
            "engine_s": statistics.median(alone[rows]),
            "ratio": statistics.median(over_http[rows]) / statistics.median(alone[rows]),
        }
        for rows in over_http
    }


def _kv_cache_tokens(port: int) -> int:
    status = httpx.get(f"http://{HOST}:{port}/status", timeout=60).json()
    return int(status["models"][0]["kv_cache_tokens"])


def _engine_alone(concurrency: Sequence[int], new_tokens: int, capacity_tokens: int, seed: str) -> dict[str, float]:
    options = [",".join(map(str, concurrency)), str(new_tokens), str(capacity_tokens), seed]
    command = [sys.executable, "-m", "benchmarks.compare.engine_alone", *options]
    told = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=ENGINE_PATIENCE_S)
    return dict(json.loads(told.stdout.splitlines()[-1]))

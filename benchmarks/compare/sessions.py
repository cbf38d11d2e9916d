"""How soon the next turn of a long session begins, against the same prompt where nothing of it was computed before.

The server reuses what one API key's requests have computed, and never for another key. So a session is exported and
imported under a second key: there its next turn has the same prompt, to the token, and is cold.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx

from .dialects import INFER, Piece
from .http_stream import HOST, Refused, encode
from .load import Answer, send, together
from .peers import OURS, PEERS
from .prompts import Prompts
from .server import Server

SESSION_TOKENS = 2000
QUESTION_TOKENS = 20
ANSWER_TOKENS = 32
BESIDE_TOKENS = 83  # of the template, the answer and the next question
WIDTHS = (1, 8)
PATIENCE_S = 300.0
KEYS = {"warm": "benchmark-key-of-the-warm", "cold": "benchmark-key-of-the-cold"}
GREEDY = {"temperature": 0, "repetition_penalty": 1.0, "ignore_eos": True}


async def next_turns(repeats: int, seed: str) -> dict[str, Any]:
    """By number of sessions at once: milliseconds to the first text of every turn, warm and cold, and its tokens."""
    (ours,) = (peer for peer in PEERS if peer.name == OURS)
    keys = [{"id": name, "key": key, "scopes": ["infer", "admin"]} for name, key in KEYS.items()]
    peer = replace(ours, dialect=replace(INFER, headers=_headers("warm")))
    prompts = Prompts(f"{seed} sessions")
    with Server(peer, INFERAPI_API_KEYS=json.dumps(keys)) as server:
        await server.first_answer()
        found: dict[str, Any] = {}
        async with httpx.AsyncClient(base_url=f"http://{HOST}:{server.port}", timeout=PATIENCE_S) as http:
            await _one_turn(http, prompts.take(SESSION_TOKENS)[0])  # warms up
            for width in WIDTHS:
                rounds = [await _round(server.port, http, prompts, width) for _ in range(repeats)]
                found[str(width)] = {
                    temperature: _summary([answers for one in rounds for answers in one[temperature]])
                    for temperature in KEYS
                }
    return found


async def _round(port: int, http: httpx.AsyncClient, prompts: Prompts, width: int) -> dict[str, list[Answer]]:
    sessions = [await _one_turn(http, text) for text in prompts.take(SESSION_TOKENS - BESIDE_TOKENS, width)]
    for session in sessions:
        document = _ok(await http.get(f"/sessions/{session}/export", headers=_headers("warm"))).json()
        _ok(await http.post("/sessions/import", json=document, headers=_headers("cold")))
    questions = prompts.take(QUESTION_TOKENS, width)
    return {temperature: await _ask(port, temperature, sessions, questions) for temperature in KEYS}


async def _one_turn(http: httpx.AsyncClient, text: str) -> str:
    body = {"text": text, "max_new_tokens": ANSWER_TOKENS, **GREEDY}
    answer = _ok(await http.post("/chat", json=body, headers=_headers("warm"))).json()
    return str(answer["session_id"])


async def _ask(port: int, temperature: str, sessions: Sequence[str], questions: Sequence[str]) -> list[Answer]:
    requests = []
    for session, question in zip(sessions, questions, strict=True):
        body = {"session_id": session, "text": question, "max_new_tokens": 8, "stream": True, "details": True, **GREEDY}
        request = encode(port, "/chat", body, _headers(temperature))
        requests.append(send(port, request, _read))
    return await together(requests)


def _read(event: dict[str, Any]) -> Piece:
    if "delta" in event:
        return Piece(event["delta"])
    usage = event["details"]["usage"]
    # What is of interest here is how many tokens were not computed: told in place of the answer's.
    return Piece("", usage["prompt_tokens"], usage["cached_tokens"])


def _summary(answers: Sequence[Answer]) -> dict[str, Any]:
    return {
        "turns": len(answers),
        "ttft_p50_ms": 1000 * statistics.median(answer.first_token_s for answer in answers),
        "prompt_tokens": statistics.median(answer.prompt_tokens or 0 for answer in answers),
        "cached_tokens": statistics.median(answer.tokens for answer in answers),
    }


def _headers(temperature: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS[temperature]}"}


def _ok(response: httpx.Response) -> httpx.Response:
    if response.is_error:
        raise Refused(f"{response.request.url}: {response.status_code} {response.text[:500]}")
    return response

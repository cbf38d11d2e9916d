"""The load: streamed requests, and when each piece of their answers came."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from .dialects import Piece
from .http_stream import Refused, encode, stream
from .peers import Peer

ANSWER_PATIENCE_S = 600.0
T = TypeVar("T")


@dataclass(frozen=True)
class Answer:
    """One request: seconds on this process's clock, and counts of tokens.

    Attributes:
        arrivals_s: when text arrived. Pieces that came together are one arrival: a reader sees them at once.
    """

    sent_s: float
    arrivals_s: Sequence[float]
    ended_s: float
    prompt_tokens: int | None
    tokens: int

    @property
    def first_token_s(self) -> float:
        """From the request to the first text."""
        return self.arrivals_s[0] - self.sent_s

    @property
    def gaps_s(self) -> list[float]:
        """From each text to the next."""
        return [after - before for before, after in zip(self.arrivals_s, self.arrivals_s[1:], strict=False)]


@dataclass(frozen=True)
class Figures:
    """What a reader of a table wants to know of some requests; times in milliseconds."""

    requests: int
    tokens: int
    tokens_per_s: float
    prompt_tokens: float | None
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass
class _Listener:
    read: Callable[[dict[str, Any]], Piece]
    arrivals_s: list[float] = field(default_factory=list)
    events: int = 0
    prompt_tokens: int | None = None
    tokens: int | None = None

    def hear(self, arrived_s: float, event: dict[str, Any]) -> None:
        piece = self.read(event)
        if piece.text:
            self.events += 1
            if not self.arrivals_s or self.arrivals_s[-1] != arrived_s:
                self.arrivals_s.append(arrived_s)
        if piece.completion_tokens is not None:
            self.prompt_tokens, self.tokens = piece.prompt_tokens, piece.completion_tokens


async def ask(port: int, peer: Peer, prompt: str, new_tokens: int) -> Answer:
    """Send one request and read its answer to the end.

    Raises:
        OSError: nobody listens.
        Refused: the answer is no good, or did not end in time.
    """
    dialect = peer.dialect
    request = encode(port, dialect.path, dialect.body(prompt, new_tokens), dialect.headers)
    return await send(port, request, dialect.read, tells_tokens=peer.tells_tokens)


async def send(
    port: int, request: bytes, read: Callable[[dict[str, Any]], Piece], *, tells_tokens: bool = True
) -> Answer:
    """The same for a request that is ready to be sent."""
    listener = _Listener(read)
    sent_s = time.perf_counter()
    try:
        async with asyncio.timeout(ANSWER_PATIENCE_S):
            await stream(port, request, listener.hear)
    except TimeoutError as error:
        raise Refused(f"no end after {ANSWER_PATIENCE_S:.0f} s") from error
    ended_s = time.perf_counter()
    if tells_tokens and listener.tokens is None:
        raise Refused("the answer does not say how many tokens it has")
    tokens = listener.tokens if listener.tokens is not None else listener.events
    arrivals_s = listener.arrivals_s or [ended_s]  # a token without text of its own
    return Answer(sent_s, arrivals_s, ended_s, listener.prompt_tokens, tokens)


async def wave(port: int, peer: Peer, prompts: Sequence[str], new_tokens: int) -> list[Answer]:
    """All at once."""
    return await together(ask(port, peer, prompt, new_tokens) for prompt in prompts)


async def together(requests: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all; if one fails, end the others and raise what it raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(request) for request in requests]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from failures
    return [task.result() for task in tasks]


def wall_s(answers: Sequence[Answer]) -> float:
    """From the first request to the last end."""
    return max(a.ended_s for a in answers) - min(a.sent_s for a in answers)


def figures(answers: Sequence[Answer], took_s: float) -> Figures:
    """Of requests that took so many seconds altogether."""
    tokens = sum(answer.tokens for answer in answers)
    first_s = [answer.first_token_s for answer in answers]
    gaps_s = [gap for answer in answers for gap in answer.gaps_s] or [0.0]
    prompts = [answer.prompt_tokens for answer in answers if answer.prompt_tokens is not None]
    return Figures(
        requests=len(answers),
        tokens=tokens,
        tokens_per_s=tokens / took_s,
        prompt_tokens=statistics.mean(prompts) if prompts else None,
        ttft_p50_ms=1000 * percentile(first_s, 0.5),
        ttft_p99_ms=1000 * percentile(first_s, 0.99),
        itl_p50_ms=1000 * percentile(gaps_s, 0.5),
        itl_p99_ms=1000 * percentile(gaps_s, 0.99),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least so large a share of the values does not exceed."""
    rank = -(-len(values) * share // 1)  # rounded up
    return sorted(values)[max(int(rank), 1) - 1]

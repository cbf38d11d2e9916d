"""More clients than a server was made for: connections that say next to nothing, and a queue that is full."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from .asking import Ask, Tally
from .connections import Connection
from .load import PATIENCE_S, NeverCame, client, until_idle
from .talkers import infer

_PADDING = b"x" * 1000
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Crowd:
    """What became of silent and slow connections, and of requests that were sent beside them.

    Attributes:
        ends: how often a connection of each kind ended in each way, such as ``idle: still open``.
        slow_bytes: bytes that the slow connections came to send.
        beside: ordinary requests while all the connections were there.
        probes: ``/health/live`` meanwhile.
        descriptors: open files of the API process before, during, and after the connections.
    """

    ends: Counter[str]
    slow_bytes: int
    beside: Tally
    probes: Tally
    descriptors: tuple[int, int, int]


async def crowd(
    url: str, *, idle: int, slow: int, interval_s: float, requests: int, count_descriptors: Callable[[], int]
) -> Crowd:
    """Hold idle connections and slow ones, which send a byte an interval; send so many requests beside them, in turn.

    Half of the slow ones send their head at that pace, the rest a whole head and then their body.

    Raises:
        NeverCame: the server did not let go of the connections once their clients had.
    """
    connections = [Connection("idle") for _ in range(idle)] + _slow_ones(slow)
    split = urlsplit(url)
    address = split.hostname or "127.0.0.1", split.port or 80
    held, over = asyncio.Barrier(len(connections) + 1), asyncio.Event()
    beside, probes = Tally(), Tally()
    async with client(url, 2) as http:

        async def ask() -> None:
            probe = Ask("/health/live", None, "GET")
            await asyncio.gather(beside.ask(http, Ask("/infer", infer(4))), probes.ask(http, probe))

        await ask()  # opens the connections of this client, so that they count before and after alike
        before = count_descriptors()
        tasks = [asyncio.create_task(c.hold(address, interval_s, held, over)) for c in connections]
        await held.wait()
        for _ in range(requests):
            await ask()
        during = count_descriptors()
        over.set()
        await asyncio.gather(*tasks)
        after = await _settled(count_descriptors, before)
    ends = Counter(f"{connection.kind}: {connection.end}" for connection in connections)
    return Crowd(ends, sum(c.sent_bytes for c in connections), beside, probes, (before, during, after))


def _slow_ones(count: int) -> list[Connection]:
    body = b'{"text": "' + _PADDING + b'", "max_new_tokens": 1}'
    start = b"POST /infer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head = start + b"Content-Length: %d\r\n\r\n" % len(body)
    heads = [Connection("slow head", start, b"X-Padding: " + _PADDING) for _ in range(count // 2)]
    return heads + [Connection("slow body", head, body) for _ in range(count - len(heads))]


async def _settled(count_descriptors: Callable[[], int], most: int) -> int:
    """The open files, once they are no more than so many."""
    count = count_descriptors()
    for _ in range(round(PATIENCE_S / _POLL_S)):
        if count <= most:
            return count
        await asyncio.sleep(_POLL_S)
        count = count_descriptors()
    raise NeverCame(f"{count} open files are left, {most} were there before")


async def flood(url: str, *, requests: int, new_tokens: int) -> Tally:
    """So many requests at once, every other one a stream; those that the queue has no room for are to be refused.

    Raises:
        NeverCame: the server did not come to rest.
    """
    tally = Tally()
    refused = frozenset({"queue_full"})
    async with client(url, requests) as http:
        asks = [Ask("/infer", infer(new_tokens, stream=n % 2 == 0), expects=refused) for n in range(requests)]
        await asyncio.gather(*(tally.ask(http, ask) for ask in asks))
        await until_idle(http)
    return tally

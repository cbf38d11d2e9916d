"""Clients that keep asking while something happens to the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, Self

import httpx

from .asking import Ask, Fate, Kind, Tally

PATIENCE_S = 180.0  # two slow cores, shared with others: only what never comes fails
REFUSED_PAUSE_S = 0.1  # a client that is refused does not ask again at once


class NeverCame(Exception):
    """Something that was waited for did not happen."""


class Talker(Protocol):
    """One client: it asks, hears what became of it, and asks again."""

    def next(self) -> Ask:
        """The next request."""
        ...

    def hear(self, fate: Fate) -> None:
        """What became of it."""
        ...


class Load:
    """Talkers, side by side, from entering the context to leaving it; each ends its last request before that.

    Args:
        http: has a connection for each of them, see ``client``.

    Attributes:
        tally: what became of all requests so far.
    """

    def __init__(self, http: httpx.AsyncClient, talkers: Sequence[Talker]) -> None:
        self.tally = Tally()
        self._talkers = talkers
        self._http = http
        self._is_over = False
        self._heard = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._talk(talker)) for talker in self._talkers]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_over = True
        try:
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.gather(*self._tasks)
        except TimeoutError:
            pass  # those that still ask have been sent and got nothing: the tally calls them lost
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def until(self, condition: Callable[[Tally], bool]) -> None:
        """Wait until the tally is so; it is looked at again after each request.

        Raises:
            NeverCame: it was not so in ``PATIENCE_S``.
        """
        try:
            async with asyncio.timeout(PATIENCE_S), self._heard:
                await self._heard.wait_for(lambda: condition(self.tally) or self._has_failed())
        except TimeoutError as error:
            raise NeverCame(f"{dict(self.tally.labels)} after {PATIENCE_S:.0f} s") from error
        for task in self._tasks:
            if task.done() and not task.cancelled() and (failure := task.exception()):
                raise failure

    def _has_failed(self) -> bool:
        return any(task.done() and not task.cancelled() and task.exception() for task in self._tasks)

    async def _talk(self, talker: Talker) -> None:
        try:
            while not self._is_over:
                fate = await self.tally.ask(self._http, talker.next())
                talker.hear(fate)
                await self._tell()
                # Whoever waits for a tally must come to look at it, also where answers come without any wait.
                await asyncio.sleep(REFUSED_PAUSE_S if fate.kind in {Kind.REFUSED, Kind.LOST} else 0)
        finally:
            await self._tell()

    async def _tell(self) -> None:
        async with self._heard:
            self._heard.notify_all()


def client(url: str, connections: int) -> httpx.AsyncClient:
    """A client with so many connections, and one for whoever looks after the server."""
    limits = httpx.Limits(max_connections=connections + 1, max_keepalive_connections=connections + 1)
    return httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, limits=limits, trust_env=False)


async def until_idle(http: httpx.AsyncClient) -> None:
    """Until no model has a request.

    Raises:
        NeverCame: not in ``PATIENCE_S``.
    """
    await until_busy(http, lambda in_flight, queued: in_flight + queued == 0)


async def until_busy(http: httpx.AsyncClient, condition: Callable[[int, int], bool]) -> tuple[int, int]:
    """Until the requests that run and that wait, of all models, are as wanted; how many they are then.

    Raises:
        NeverCame: not in ``PATIENCE_S``.
    """
    found = (-1, -1)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition(*found):
                models = (await http.get("/status")).json()["models"]
                found = sum(line["in_flight"] for line in models), sum(line["queued"] for line in models)
                if not condition(*found):
                    await asyncio.sleep(0.02)
    except TimeoutError as error:
        raise NeverCame(f"{found[0]} run and {found[1]} wait after {PATIENCE_S:.0f} s") from error
    return found

"""What the server needs goes away under load: its session store, or the process of its model."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .asking import Ask, Fate, Tally
from .load import Load, client, until_idle
from .talkers import Chatter, Continuer, infer, missing_turns

STORE_AWAY = frozenset({"session_store_unavailable", "history_not_saved"})
# A turn whose lease could not be given back while the store was away is refused until the lease has run out.
STORE_BACK = STORE_AWAY | {"session_busy"}
WORKER_GONE = frozenset({"model_crashed"})


@dataclass(frozen=True, slots=True)
class Outage:
    """What clients met before, during and after.

    Attributes:
        chats, others: requests with and without a session.
        others_during: answers without a session between the beginning and the end of the outage.
        readiness: ``/health/ready`` in the middle of it.
        turns: what is wrong with the stored histories, see ``missing_turns``.
    """

    chats: Tally
    others: Tally
    others_during: int
    readiness: str
    turns: Counter[str]


async def store_away(
    url: str, *, chatters: int, others: int, rounds: int, begin: Callable[[], object], end: Callable[[], object]
) -> Outage:
    """Chat and continue texts while the session store goes away and comes back.

    It goes once each chatter had so many ``rounds`` of answers on average, stays until so many rounds were refused and
    answered beside, and after it there are so many rounds of answers again. ``begin`` takes it away and ``end`` brings
    it back; both may block.

    Raises:
        NeverCame: requests were neither answered nor refused as they should have been.
    """
    talking = [Chatter(f"outage-{number}", expects=STORE_BACK) for number in range(chatters)]
    async with (
        client(url, chatters + others) as http,
        Load(http, [Continuer() for _ in range(others)]) as beside,
    ):
        async with Load(http, talking) as chats:
            await chats.until(_answers(rounds * chatters))
            await asyncio.to_thread(begin)
            answered = beside.tally.answered
            await chats.until(_refusals(chats.tally.refused + rounds * chatters))
            await beside.until(_answers(answered + rounds * others))
            readiness = (await http.get("/health/ready")).json()["status"]
            during = beside.tally.answered - answered
            await asyncio.to_thread(end)
            await chats.until(_answers(chats.tally.answered + rounds * chatters))
        turns = await missing_turns(http, talking)
    return Outage(chats.tally, beside.tally, during, readiness, turns)


@dataclass(frozen=True, slots=True)
class Crashes:
    """What clients met whose model's process was killed again and again.

    Attributes:
        told: requests that were told of a crash, whole or in their stream.
        next_answer: what became of a request after the last of it all.
        turns: what is wrong with the stored histories, see ``missing_turns``.
    """

    tally: Tally
    told: int
    next_answer: Fate
    turns: Counter[str]


async def crashes(
    url: str, *, clients: int, kills: int, rounds: int, new_tokens: int, kill: Callable[[], object]
) -> Crashes:
    """Chat and continue texts, half of the clients each, while the worker is killed so often.

    Between two kills each client has so many ``rounds`` of answers on average, and somebody was told of the one before.

    Raises:
        NeverCame: nobody was told, or nobody was answered any more.
    """
    chatters = [Chatter(f"crash-{number}", new_tokens, WORKER_GONE) for number in range(clients // 2)]
    continuers = [Continuer(new_tokens, WORKER_GONE) for _ in range(clients - len(chatters))]
    async with client(url, clients) as http:
        async with Load(http, [*chatters, *continuers]) as load:
            for _ in range(kills):
                await load.until(_answers(load.tally.answered + rounds * clients))
                told = load.tally.refused
                await asyncio.to_thread(kill)
                await load.until(_refusals(told + 1))
            await load.until(_answers(load.tally.answered + rounds * clients))
        after = Tally()
        next_answer = await after.ask(http, Ask("/infer", infer(4)))
        await until_idle(http)
        turns = await missing_turns(http, chatters)
    told = sum(count for label, count in load.tally.refusals.items() if "model_crashed" in label)
    return Crashes(load.tally, told, next_answer, turns)


def _answers(least: int) -> Callable[[Tally], bool]:
    return lambda tally: tally.answered >= least


def _refusals(least: int) -> Callable[[Tally], bool]:
    return lambda tally: tally.refused >= least

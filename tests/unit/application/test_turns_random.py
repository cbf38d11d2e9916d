"""Two processes, clients that leave, and a store that comes and goes, in an order that nobody thought of."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

import pytest

from inferapi.domain.chat import Session, SessionLimits
from inferapi.domain.errors import InferapiError, SessionStoreUnavailable
from session_contract import make_turn
from turn_actors import S1, can_enter

LIMITS = SessionLimits(1000, 10**6)
STEPS = 120


@dataclass
class World:
    """What was done, as its clients know it."""

    stage: object
    chance: random.Random
    tasks: list[asyncio.Task] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)  # told that it is stored, in this order
    refused: list[str] = field(default_factory=list)  # told that it is not
    doubtful: set[str] = field(default_factory=set)  # the store's answer was lost, or the client left
    inside: int = 0

    async def turn(self, number: int) -> None:
        name, gate = f"turn-{number}", self.chance.choice([self.stage.turns, self.stage.elsewhere])
        length_s = self.chance.choice([0, 0.1, 1, 5, 20])
        try:
            async with gate.turn(S1) as held:
                await self.stage.clock.sleep(length_s)
                before = held.session or Session(S1, "Be brief.")
                after = await held.commit(before, before.appending(make_turn(number), LIMITS))
                assert after.turns[:-1] == before.turns
                self.stored.append(name)
        except SessionStoreUnavailable:
            self.refused.append(name)
        except InferapiError as error:
            lost = isinstance(error.__cause__, SessionStoreUnavailable)
            (self.doubtful.add if lost else self.refused.append)(name)
        except asyncio.CancelledError:
            self.doubtful.add(name)
            raise

    async def step(self, number: int) -> None:
        store, chance = self.stage.store, self.chance
        match chance.randrange(10):
            case 0 | 1 | 2 | 3:
                self.tasks.append(asyncio.create_task(self.turn(number)))
            case 4 if self.tasks:
                chance.choice(self.tasks).cancel()
            case 5:
                scripts = chance.choice([store.errors, store.late_errors])
                scripts[chance.choice(["begin", "renew", "end", "commit"])] = SessionStoreUnavailable()
            case 6:
                store.errors.clear()
                store.late_errors.clear()
        await self.stage.clock.advance(chance.choice([0, 0.01, 0.3, 1, 4]))


@pytest.mark.parametrize("seed", range(40))
async def test_what_was_told_to_be_stored_is_stored_once_in_that_order_and_nothing_else_is(stage, seed):
    world = World(stage, random.Random(seed))
    for number in range(STEPS):
        await world.step(number)
    stage.store.errors.clear()
    stage.store.late_errors.clear()
    await stage.clock.advance(600)
    results = await asyncio.gather(*world.tasks, return_exceptions=True)
    assert [one for one in results if isinstance(one, Exception)] == []
    session = await stage.store.get(S1)
    found = [turn.turn_id for turn in session.turns] if session else []
    assert len(found) == len(set(found))
    assert [name for name in found if name not in world.doubtful] == world.stored
    assert set(found).isdisjoint(world.refused)
    assert await can_enter(stage.turns)
    assert await can_enter(stage.elsewhere)
    assert (stage.turns._gates, stage.elsewhere._gates) == ({}, {})
    assert (stage.turns._cleanups, stage.elsewhere._cleanups) == (set(), set())

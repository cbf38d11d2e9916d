"""Turns by hand, without a model: for tests of the gate that lets them through."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

from fakes import settle
from inferapi.domain.chat import Session, SessionLimits, SessionRef
from session_contract import make_turn

S1 = SessionRef("", "s1")
LIMITS = SessionLimits(1000, 10**6)


async def write(held, number: int = 1) -> Session:
    """The turn's one write."""
    before = held.session or Session(held._lease.ref, "Be brief.")
    return await held.commit(before, before.appending(make_turn(number), LIMITS))


async def write_one(gate, number: int = 1, ref: SessionRef = S1) -> Session:
    async with gate.turn(ref) as held:
        return await write(held, number)


async def end_one(gate) -> None:
    async with gate.turn(S1):
        pass


@asynccontextmanager
async def running(gate, ref: SessionRef = S1):
    """A turn in a task of its own, which holds the session until the end, and its ``held``."""
    entered: asyncio.Future = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def run() -> None:
        async with gate.turn(ref) as held:
            entered.set_result(held)
            await over.wait()

    task = asyncio.create_task(run())
    await settle()
    assert entered.done()
    try:
        yield entered.result()
    finally:
        over.set()
        await task


async def can_enter(gate, ref: SessionRef = S1) -> bool:
    """Whether a turn gets in without any time passing."""

    async def enter() -> None:
        async with gate.turn(ref):
            pass

    entering = asyncio.create_task(enter())
    await settle()
    if entering.done():
        await entering
        return True
    entering.cancel()
    await asyncio.gather(entering, return_exceptions=True)
    return False

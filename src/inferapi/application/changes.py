"""What the changes that operators ask for have in common.

One at a time where they would undo each other, joined where they are the same, never lost with the client.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from inferapi.application.fleet import Fleet
from inferapi.application.jobs import Listener, LoadJob
from inferapi.application.loading import ModelLoads
from inferapi.application.policy import ModelKey
from inferapi.application.residents import Resident
from inferapi.application.unloading import Departure, ModelUnloads
from inferapi.domain.errors import LoadCancelled, ModelNotLoaded, OperationInProgress, ShuttingDown
from inferapi.domain.model import EngineFacts, ModelRef
from inferapi.domain.states import ModelState
from inferapi.domain.telemetry import UnloadReason


class Changes:
    """Steps of load, change and unload as operators ask for them."""

    def __init__(self, fleet: Fleet, loads: ModelLoads, unloads: ModelUnloads) -> None:
        self._fleet = fleet
        self._loads = loads
        self._unloads = unloads

    def require_no_other(self, key: ModelKey, *, replaces: ModelKey | None) -> None:
        """Two changes that would undo each other are not begun: the second is told of the first."""
        if self._fleet.is_closed:
            raise ShuttingDown
        for job in self._fleet.jobs:
            fights = self._fleet.policy.max_resident_models == 1 or job.replaces is not None or replaces is not None
            if job.explicit and job.key != key and fights:
                raise OperationInProgress(operation=job.name)

    async def cleaned_up(self, key: ModelKey) -> None:
        """Wait for a load of it that was cancelled to be over, so that it can be asked for again."""
        while (job := self._fleet.jobs.find(key)) is not None and job.is_over:
            await asyncio.wait({job.task})
            await asyncio.sleep(0)  # its end is noted by a callback, if it never began

    def make_current(self, resident: Resident, *, pinned: bool | None) -> EngineFacts:
        """Requests that name no model go there from now on."""
        self._fleet.current = resident.key
        self._fleet.pin(resident.key, pinned=pinned)
        self._fleet.residents.touch(resident)
        return resident.engine.facts

    def same(self, key: ModelKey) -> Resident | None:
        """The model in memory that was loaded just so, under this name or another of the same commit."""
        resident = self._fleet.residents.named(key.ref)
        return resident if resident is not None and replace(resident.key, ref=key.ref) == key else None

    def explicit(self, key: ModelKey, *, replaces: ModelKey | None, pinned: bool | None) -> LoadJob:
        """The load of that model, begun or joined."""
        job = self._fleet.jobs.find(key) or self._loads.begin(key, explicit=True, reason="asked for")
        job.explicit = True
        if replaces is not None and replaces != key and job.replaces is None:
            job.replaces = replaces
            self._fleet.spawn(self._replaced(job, replaces), job.name)
        self._fleet.pin(key, pinned=pinned)
        in_turn = self._fleet.jobs.in_turn
        if in_turn is not None and not in_turn.explicit and in_turn.state is ModelState.ADMITTING:
            in_turn.cancel()  # operators come first; the requests that wait for that load get another
        self._fleet.bell.ring()
        return job

    async def _replaced(self, job: LoadJob, replaced: ModelKey) -> None:
        """Take the replaced model away, should the load have made no room for it; whether the caller stays or not."""
        await asyncio.wait({job.task})
        if not job.task.cancelled() and job.task.exception() is None:
            self._fleet.unpin(replaced)
            left = [r for r in self._fleet.residents if r.key == replaced]
            await self.take_away(left, UnloadReason.REPLACED, f"replaced by {job.key.ref}")

    async def joined(self, job: LoadJob, listener: Listener | None) -> EngineFacts:
        """Wait for its end. A caller that leaves only stops waiting.

        Raises:
            LoadCancelled, ShuttingDown: it was given up.
            others: what it failed with.
        """
        stop = job.listen(listener) if listener else None
        try:
            resident = await asyncio.shield(job.task)
        except asyncio.CancelledError:
            if job.task.cancelled():  # not the caller; before its first step
                raise (ShuttingDown() if self._fleet.is_closed else LoadCancelled(model=str(job.key.ref))) from None
            raise
        finally:
            if stop:
                stop()
        return resident.engine.facts

    async def cancelled(self, ref: ModelRef | None) -> ModelRef | None:
        """Give up the load of that model, or without a name of the current one; what it was, if there was one."""
        fleet = self._fleet
        meant = {fleet.current} if ref is None else {job.key for job in fleet.jobs if job.key.ref == ref}
        is_first = fleet.current is None and ref is None
        job = next((job for job in fleet.jobs if job.key in meant or is_first), None)
        if job is None:
            return None
        if job.state is ModelState.FAILED:  # by itself: there is nothing to cancel
            await asyncio.wait({job.task})
            return None
        for waiter in fleet.waiters_for(job.key):
            waiter.refuse(LoadCancelled(model=str(job.key.ref)))
        if fleet.current == job.key:
            fleet.current = None
        job.cancel()
        await asyncio.wait({job.task})
        return job.key.ref

    async def removed(self, ref: ModelRef | None) -> ModelRef:
        """Take that model, or the current one, out of memory for good; which it was.

        Raises:
            ModelNotLoaded: it is not there.
            OperationInProgress: it makes room for another one just now.
        """
        fleet = self._fleet
        key = fleet.current if ref is None else fleet.known(ref)
        if key is None:
            raise ModelNotLoaded
        for job in fleet.jobs:
            if job.replaces == key or any(r.key == key for r in (*job.victims, *job.displaced)):
                raise OperationInProgress(operation=job.name)
        if fleet.current == key:
            fleet.current = None
        fleet.unpin(key)
        await self.take_away([r for r in fleet.residents if r.key == key], UnloadReason.ASKED, "asked for")
        return key.ref

    async def take_away(self, residents: list[Resident], why: UnloadReason, reason: str) -> None:
        """Drain and end them; goes on if the caller leaves."""
        departure = Departure(why, reason, self._fleet.policy.drain_timeout_s, cuts=True)
        tasks = [self._unloads.begin(resident, departure) for resident in residents]
        await asyncio.gather(*(asyncio.shield(task) for task in tasks))

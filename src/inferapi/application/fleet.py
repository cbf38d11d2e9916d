"""Everything that is known of models at this moment: one object, that the rooms of the lifecycle share.

Only ``lifecycle``, ``control``, ``loading`` and ``unloading`` write to it, on one event loop: what stands between
two ``await``s is one transition.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import Context
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from inferapi.application.bell import Bell
from inferapi.application.failures import Failures
from inferapi.application.jobs import Jobs, LoadJob
from inferapi.application.journal import EventKind, Journal
from inferapi.application.policy import LifecyclePolicy, ModelKey
from inferapi.application.residents import Resident, Residents
from inferapi.application.waiting import Waiter, WaitingRoom
from inferapi.domain.errors import QueueFull
from inferapi.domain.model import EngineSpec, ModelRef
from inferapi.domain.ports import Clock, TextEngine
from inferapi.domain.states import ModelState, ModelStatus
from inferapi.domain.telemetry import SILENT, LoadOutcome, Telemetry, UnloadReason

MOST_SOUGHT = 4
"""Models that are resolved and downloaded at once because requests name them: requests choose names freely."""


class Fleet:
    """Models in memory, loads under way, requests that wait, and which model is current.

    Attributes:
        current: where requests go that name no model; also while it is unloaded, and then they load it again.
        is_closed: the server is about to end, and nothing new begins.
        was_ready: some model has been in memory.
    """

    def __init__(self, clock: Clock, policy: LifecyclePolicy, telemetry: Telemetry = SILENT) -> None:
        self.clock = clock
        self.policy = policy
        self.telemetry = telemetry
        self.bell = Bell(clock)
        self.residents = Residents(clock, self.bell)
        self.jobs = Jobs()
        self.waiting = WaitingRoom()
        self.failures = Failures(clock)
        self.journal = Journal(clock)
        self.current: ModelKey | None = None
        self.is_closed = False
        self.was_ready = False
        self._pins: dict[ModelKey, bool] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    def pin(self, key: ModelKey, *, pinned: bool | None) -> None:
        """What an operator said of it, if anything: it holds until the model is asked to go."""
        if pinned is not None:
            self._pins[key] = pinned
        resident = self.residents.find(key)
        if resident is not None:
            resident.pinned = self._is_pinned(key)

    def unpin(self, key: ModelKey) -> bool | None:
        """Forget what an operator said of it; what it was."""
        return self._pins.pop(key, None)

    def _is_pinned(self, key: ModelKey) -> bool:
        by_settings = any(fnmatchcase(key.ref.name, pattern) for pattern in self.policy.pinned_models)
        return self._pins.get(key, by_settings)

    def known(self, ref: ModelRef) -> ModelKey | None:
        """The load that a name means, if one is in memory, under way or current."""
        resident = self.residents.named(ref)
        if resident is not None:
            return resident.key
        keys = [job.key for job in self.jobs] + ([self.current] if self.current else [])
        return next((key for key in keys if key.ref == ref), None)

    def grant(self, resident: Resident) -> None:
        """Everybody who waits for this model gets a lease, before anything else is decided."""
        for waiter in self.waiting:
            key = waiter.key or self.current
            if key is not None and (key == resident.key or key.ref in resident.names):
                waiter.grant(resident)

    def resident(self, key: ModelKey | None) -> Resident | None:
        """The model in memory that answers requests for that key, however it was loaded."""
        return None if key is None else self.residents.find(key) or self.residents.named(key.ref)

    def twin(self, key: ModelKey, commit: str | None) -> Resident | None:
        """The model in memory that is this very commit under another name, loaded with the same options."""
        return next(
            (
                resident
                for resident in self.residents
                if resident.is_ready
                and commit is not None
                and resident.commit == commit
                and resident.key.ref.name == key.ref.name
                and resident.key.options == key.options
            ),
            None,
        )

    def already(self, job: LoadJob) -> Resident | None:
        """The ready model in memory that is what the job is for: it came by another way, or need not go after all."""
        resident = self.residents.find(job.key) if job.explicit else self.resident(job.key)
        if resident is not None and resident.is_ready:
            return resident
        return self.twin(job.key, job.profile.commit if job.profile else None)

    def waiters_for(self, key: ModelKey | None) -> list[Waiter]:
        """Those who wait for that model: by its name, because it is current, or because it is to be the first."""
        first = next((job.key for job in self.jobs if job.explicit), None)
        return [waiter for waiter in self.waiting if (waiter.key or self.current or first) == key]

    def require_room_to_wait(self, key: ModelKey | None) -> None:
        """Nothing, if one more request may wait for that model.

        Raises:
            QueueFull: too many wait for it, or for all models together.
        """
        most = self.policy.max_batch + self.policy.max_queue
        waiting, all_waiting = len(self.waiters_for(key or self.current)), len(list(self.waiting))
        if waiting >= most:
            raise QueueFull(waiting=waiting)
        if all_waiting >= most * (self.policy.max_resident_models + MOST_SOUGHT):
            raise QueueFull(waiting=all_waiting)

    def status(self, threshold_s: int) -> list[ModelStatus]:
        """One line a model: in memory, being loaded, or current and waiting for a request."""
        now_s = self.clock.monotonic_s()
        lines = {resident.key: resident.status(now_s, threshold_s) for resident in self.residents}
        for job in self.jobs:
            if job.key not in lines or job.turn.is_set():
                lines[job.key] = ModelStatus(str(job.key.ref), job.state, progress=job.progress())
        if self.current is not None and self.current not in lines:
            state = ModelState.FAILED if self.current in self.failures else ModelState.UNLOADED
            lines[self.current] = ModelStatus(str(self.current.ref), state)
        return [replace(line, queued=line.queued + len(self.waiters_for(key))) for key, line in lines.items()]

    def arrive(self, job: LoadJob, spec: EngineSpec, engine: TextEngine, *, commit: str | None) -> Resident:
        """A load becomes a model in memory: ready, current if it was asked for, and leased to those who wait."""
        if job.state is ModelState.LOADING:
            job.enter(ModelState.WARMING)
        job.enter(ModelState.READY)
        resident = self.residents.add(job.key, spec, engine, commit=commit, pinned=self._is_pinned(job.key))
        self.was_ready = True
        if job.explicit:
            self.current = job.key
        self.grant(resident)
        self.spawn(self._watch(resident), f"watching {job.key.ref}")
        return resident

    def over(self, job: LoadJob) -> None:
        """It ended, one way or the other; also one that was cancelled before its first step."""
        if self.jobs.find(job.key) is job and job.state is ModelState.QUEUED:
            self.journal.record(EventKind.LOAD_CANCELLED, str(job.key.ref), job.state.value, elapsed_s=0.0)
            self.telemetry.load_ended(str(job.key.ref), LoadOutcome.CANCELLED, 0.0)
        self.jobs.discard(job)
        self.bell.ring()

    async def _watch(self, resident: Resident) -> None:
        """Forget a model whose engine died; the next request loads it again."""
        await resident.engine.wait_closed()
        if resident.state in {ModelState.READY, ModelState.DRAINING}:
            resident.to(ModelState.UNLOADED)
            self.residents.discard(resident)
            self.journal.record(
                EventKind.CRASHED, str(resident.key.ref), "its process ended", requests_in_flight=resident.leases
            )
            self.telemetry.model_unloaded(str(resident.key.ref), UnloadReason.CRASHED)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Run something in the background, kept until it ends."""
        # It outlives the request that it was begun in, and so does what it opens: its lines are not that request's.
        task = asyncio.create_task(work, name=name, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Everybody who asked for it may have left by its end: then nobody else looks at what became of it.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def settled(self) -> None:
        """Wait for everything in the background."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

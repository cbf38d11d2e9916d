"""The models in memory, and who uses them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from inferapi.application.policy import NEVER_S, ModelKey
from inferapi.domain.model import DeviceKind, EngineSpec, ModelState, ModelStatus
from inferapi.domain.ports import Clock, TextEngine


@dataclass(slots=True, eq=False)
class Resident:
    """A loaded model. ``last_used_s`` is monotonic, ``last_used_wall_s`` is for people."""

    key: ModelKey
    spec: EngineSpec
    engine: TextEngine
    last_used_s: float
    last_used_wall_s: float
    state: ModelState = ModelState.READY
    leases: int = 0

    @property
    def is_ready(self) -> bool:
        """A lease may be granted."""
        return self.state is ModelState.READY and not self.engine.is_closed

    def status(self, now_s: float, threshold_s: int) -> ModelStatus:
        """The line of ``/status``."""
        unloads_in_s = None
        if threshold_s != NEVER_S and not self.leases and self.state is ModelState.READY:
            unloads_in_s = max(self.last_used_s + threshold_s - now_s, 0.0)
        queued = self.engine.load.waiting
        return ModelStatus(
            name=str(self.key.ref),
            state=self.state,
            in_flight=max(self.leases - queued, 0),
            queued=queued,
            last_used_s=self.last_used_wall_s,
            unloads_in_s=unloads_in_s,
            facts=self.engine.facts,
        )


class Residents:
    """All loaded models, and a bell that rings at every change of them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._all: list[Resident] = []
        self._changed = asyncio.Event()

    def __iter__(self) -> Iterator[Resident]:
        """In order of loading."""
        return iter(tuple(self._all))

    def find(self, key: ModelKey | None) -> Resident | None:
        """The living model of that key."""
        return next((resident for resident in self._all if resident.key == key and not resident.engine.is_closed), None)

    def add(self, key: ModelKey, spec: EngineSpec, engine: TextEngine) -> Resident:
        """A model that was just loaded."""
        resident = Resident(key, spec, engine, self._clock.monotonic_s(), self._clock.wall_s())
        self._all.append(resident)
        self.ring()
        return resident

    def discard(self, resident: Resident) -> bool:
        """Forget one; false if it was forgotten before."""
        if resident not in self._all:
            return False
        self._all.remove(resident)
        self.ring()
        return True

    def touch(self, resident: Resident) -> None:
        """It was used until now."""
        resident.last_used_s, resident.last_used_wall_s = self._clock.monotonic_s(), self._clock.wall_s()
        self.ring()

    def idle(self) -> list[Resident]:
        """Ready and used by nobody, the longest first."""
        idle = [resident for resident in self._all if resident.state is ModelState.READY and not resident.leases]
        return sorted(idle, key=lambda resident: resident.last_used_s)

    def making_room_for(self, key: ModelKey, replaced: ModelKey | None, max_resident: int) -> list[Resident]:
        """Who must go: the replaced model, the same model loaded otherwise, then idle ones, the longest first."""
        going = [r for r in self._all if r.key.ref.name == key.ref.name or (replaced is not None and r.key == replaced)]
        others = sorted((r for r in self._all if r not in going), key=lambda r: (r.leases > 0, r.last_used_s))
        surplus = len(others) + 1 - max_resident
        return going + others[: max(surplus, 0)]

    async def drained(self, residents: Sequence[Resident], timeout_s: float) -> None:
        """Wait until nobody uses them, or the time is over."""
        deadline_s = self._clock.monotonic_s() + timeout_s
        while any(resident.leases for resident in residents):
            remaining_s = deadline_s - self._clock.monotonic_s()
            if remaining_s <= 0:
                return
            await self.changed(remaining_s)

    def ring(self) -> None:
        """Wake everybody who waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, timeout_s: float | None) -> None:
        """Wait for the next change, or until the time is over."""
        waits: set[asyncio.Future[Any]] = {asyncio.ensure_future(self._changed.wait())}
        if timeout_s is not None:
            waits.add(asyncio.ensure_future(self._clock.sleep(timeout_s)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()


def unwritten_bytes(residents: Iterable[Resident]) -> int:
    """What they may still grow by: on a CPU the KV cache takes memory only once it is written."""
    return sum(
        max(resident.spec.promised_bytes - resident.engine.facts.memory_bytes, 0)
        for resident in residents
        if resident.spec.device is DeviceKind.CPU
    )


def memory_bytes(residents: Iterable[Resident]) -> int:
    """What they take together, as measured when they were loaded."""
    return sum(resident.engine.facts.memory_bytes for resident in residents)

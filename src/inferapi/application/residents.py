"""The models in memory, and who uses them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from inferapi.application.bell import Bell
from inferapi.application.policy import NEVER_S, ModelKey
from inferapi.domain.model import DeviceKind, EngineSpec, ModelRef
from inferapi.domain.ports import Clock, TextEngine
from inferapi.domain.states import TRANSITIONS, ModelState, ModelStatus


class IllegalTransitionError(Exception):
    """A model was to enter a state that cannot follow the one it is in: a fault of ours."""


def checked(before: ModelState, after: ModelState) -> ModelState:
    """``after``, if it may follow ``before``.

    Raises:
        IllegalTransitionError: it may not.
    """
    if after not in TRANSITIONS[before]:
        raise IllegalTransitionError(f"{before} to {after}")
    return after


@dataclass(slots=True, eq=False)
class Resident:
    """One instance of a loaded model; loaded again it is another one.

    Attributes:
        names: the refs that turned out to mean this very model.
        ready_s, last_used_s: monotonic; ``last_used_wall_s`` is for people.
        leases: requests that use it. It does not go while there are any, unless a drain deadline passes.
        leavers: how many want it gone; when the last of them thinks otherwise, it is ready again.
        ending: the task that ends it, once one does.
    """

    key: ModelKey
    spec: EngineSpec
    engine: TextEngine
    commit: str | None
    ready_s: float
    last_used_s: float
    last_used_wall_s: float
    pinned: bool = False
    state: ModelState = ModelState.READY
    leases: int = 0
    leavers: int = 0
    names: set[ModelRef] = field(default_factory=set)
    ending: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        """A lease may be granted."""
        return self.state is ModelState.READY and not self.engine.is_closed

    @property
    def is_free(self) -> bool:
        """Ready, and nobody uses it."""
        return self.is_ready and not self.leases

    @property
    def most_running(self) -> int:
        """How many requests its engine works on at once."""
        return 1 if self.engine.facts.batching == "sequential" else self.spec.max_batch

    @property
    def held_bytes(self) -> int:
        """What it takes, as last measured."""
        return max(self.engine.facts.memory_bytes, self.engine.load.memory_bytes)

    @property
    def unwritten_bytes(self) -> int:
        """What it may still grow by: on a CPU the KV cache takes memory only once it is written."""
        return max(self.spec.promised_bytes - self.held_bytes, 0) if self.spec.device is DeviceKind.CPU else 0

    def to(self, state: ModelState) -> None:
        """Enter the next state.

        Raises:
            IllegalTransitionError: it cannot follow this one.
        """
        self.state = checked(self.state, state)

    def leaves(self) -> bool:
        """Somebody wants it gone: no more leases. Whether that is news."""
        self.leavers += 1
        is_news = self.state is ModelState.READY
        if is_news:
            self.to(ModelState.DRAINING)
        return is_news

    def stays(self) -> None:
        """Somebody does not want it gone any more."""
        self.leavers -= 1
        if self.state is ModelState.DRAINING and not self.leavers:
            self.to(ModelState.READY)

    def status(self, now_s: float, threshold_s: int) -> ModelStatus:
        """The line of ``/status``."""
        unloads_in_s = None
        if threshold_s != NEVER_S and self.is_free and not self.pinned:
            unloads_in_s = max(self.last_used_s + threshold_s - now_s, 0.0)
        load = self.engine.load
        # A lease may be for several choices, of which some wait while others run. And the engine has not told yet of
        # those that came since its last step: more than it can work on at once are on their way into its queue.
        busy = max(self.leases - load.waiting, min(self.leases, load.running))
        in_flight = min(busy, self.most_running)
        return ModelStatus(
            name=str(self.key.ref),
            state=self.state,
            in_flight=in_flight,
            queued=load.waiting + busy - in_flight,
            last_used_s=self.last_used_wall_s,
            unloads_in_s=unloads_in_s,
            pinned=self.pinned,
            facts=self.engine.facts,
            load=load,
        )


class Residents:
    """All models in memory, those that are on their way out included."""

    def __init__(self, clock: Clock, bell: Bell) -> None:
        self._clock = clock
        self._bell = bell
        self._all: list[Resident] = []

    def __iter__(self) -> Iterator[Resident]:
        """In order of loading."""
        return iter(tuple(self._all))

    def find(self, key: ModelKey | None) -> Resident | None:
        """The living model of that key."""
        return next((resident for resident in self._all if resident.key == key and not resident.engine.is_closed), None)

    def named(self, ref: ModelRef) -> Resident | None:
        """The living model that a request means by that name, however it was loaded."""
        return next((r for r in self._all if ref in r.names and not r.engine.is_closed), None)

    def add(self, key: ModelKey, spec: EngineSpec, engine: TextEngine, *, commit: str | None, pinned: bool) -> Resident:
        """A model that was just loaded."""
        now_s = self._clock.monotonic_s()
        resident = Resident(key, spec, engine, commit, now_s, now_s, self._clock.wall_s(), pinned)
        self._all.append(resident)
        self.name(resident, key.ref)
        return resident

    def name(self, resident: Resident, ref: ModelRef) -> None:
        """From now on the name means this one, and no other."""
        for other in self._all:
            other.names.discard(ref)
        resident.names.add(ref)
        self._bell.ring()

    def discard(self, resident: Resident) -> bool:
        """Forget one; false if it was forgotten before."""
        if resident not in self._all:
            return False
        self._all.remove(resident)
        self._bell.ring()
        return True

    def touch(self, resident: Resident) -> None:
        """It was used until now."""
        resident.last_used_s, resident.last_used_wall_s = self._clock.monotonic_s(), self._clock.wall_s()
        self._bell.ring()

    def release(self, resident: Resident) -> None:
        """A lease is returned; the idle time begins with the last one."""
        resident.leases -= 1
        self.touch(resident)

"""A world for the lifecycle's state machine: operators, requests and engines, each watched by what it may do.

Whoever breaks a rule is written down in ``World.faults`` in the moment in which it happens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from itertools import pairwise
from typing import Any

from fakes import (
    GIB,
    FakeClock,
    FakeEngineLauncher,
    FakeGpuProbe,
    FakeModelRepository,
    Gate,
    ScriptedEngine,
    make_device,
    make_profile,
)
from inferapi.application.jobs import Listener
from inferapi.application.journal import EventKind
from inferapi.application.lifecycle import ModelLifecycle
from inferapi.application.policy import LifecyclePolicy
from inferapi.domain.errors import InferapiError
from inferapi.domain.model import EngineSpec, LoadOptions, ModelRef
from inferapi.domain.ports import TextEngine
from inferapi.domain.states import TRANSITIONS, ModelState, Report
from lifecycle_actors import Operation, Request, watched

NAMES = ("gpt2", "other", "third")
DRAIN_TIMEOUT_S = 20.0
LOAD_WAIT_S = 60.0
BROKEN_OFF = {EventKind.LOAD_FAILED, EventKind.LOAD_REFUSED, EventKind.LOAD_CANCELLED}


class WatchedEngine(ScriptedEngine):
    """Tells the world when it is ended."""

    world: World

    async def aclose(self) -> None:
        if not self.is_closed:
            self.world.ends(self)
        await super().aclose()


class WatchedLauncher(FakeEngineLauncher):
    """Tells the world when a launch begins and how many run."""

    def __init__(self, world: World) -> None:
        super().__init__("Hello", " there")
        self.world = world
        self.launching = 0

    async def launch(self, spec: EngineSpec, report: Report) -> TextEngine:
        self.world.launches(spec)
        self.launching += 1
        try:
            plain = await super().launch(spec, report)
        finally:
            self.launching -= 1
        engine = WatchedEngine("Hello", facts=plain.facts)
        engine.world = self.world
        self.engines[-1] = engine
        return engine


class World(logging.Handler):
    """The real lifecycle on fakes, those who use it, and what they saw. It is a log handler to see what broke."""

    def __init__(self, **policy: Any) -> None:
        super().__init__(logging.WARNING)
        self.faults: list[str] = []
        self.operations: list[Operation] = []
        self.requests: list[Request] = []
        self.taken_away: set[str] = set()
        self.called_off: set[str] = set()
        self.crashed: list[ScriptedEngine] = []
        self.clock = FakeClock()
        self.probe = FakeGpuProbe(make_device(native_kernels=True))
        self.models = FakeModelRepository(*(make_profile(name, commit=f"commit of {name}") for name in NAMES))
        self.launcher = WatchedLauncher(self)
        self.probe.taken = lambda: min(2 * GIB * len(self.launcher.live), self.probe.reading.free_bytes)
        self.policy = LifecyclePolicy(drain_timeout_s=DRAIN_TIMEOUT_S, load_wait_s=LOAD_WAIT_S, **policy)
        self.lifecycle = ModelLifecycle(self.models, self.launcher, self.probe, self.clock, self.policy)
        self.fleet = self.lifecycle._fleet

    def emit(self, record: logging.LogRecord) -> None:
        """A log line: what is logged with a fault of ours is one."""
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and not isinstance(error, InferapiError):
            self.faults.append(f"{record.getMessage()}: {error!r}")

    def load(self, name: str, options: LoadOptions | None = None, *, pinned: bool | None = None) -> None:
        """An operator loads a model."""
        self._operate(
            "load", name, lambda hear: self.lifecycle.load(ModelRef(name), options, pinned=pinned, listener=hear)
        )

    def change(self, name: str) -> None:
        """An operator changes to a model."""
        self._operate("change", name, lambda hear: self.lifecycle.change(ModelRef(name), listener=hear))

    def unload(self, name: str | None) -> None:
        """An operator takes a model away, or stops its load."""
        self._operate("unload", name, lambda _: self.lifecycle.unload(ModelRef(name) if name else None))

    def _operate(self, kind: str, name: str | None, begin: Callable[[Listener], Coroutine[Any, Any, Any]]) -> None:
        operation = Operation(kind, name)
        self.operations.append(operation)
        operation.task = watched(self._run(operation, name, begin), f"{kind} {name}")

    async def _run(
        self, operation: Operation, name: str | None, begin: Callable[[Listener], Coroutine[Any, Any, Any]]
    ) -> None:
        current = self.lifecycle.current  # what the lifecycle sees: nothing happens before its first await
        may_cut = {name} if operation.kind == "load" else {name, current and current.name}
        operation.may_cut, operation.began_s = {one for one in may_cut if one}, self.clock.monotonic_s()
        if operation.kind == "unload":
            self._note_unload(name or (current.name if current else None))
        was_taken_away = operation.kind != "unload" and name in self.taken_away
        if operation.kind != "unload":
            self.taken_away.discard(str(name))
        stages: list[ModelState] = []
        try:
            await begin(lambda progress: stages.append(progress.stage))
        except InferapiError:
            if operation.kind == "unload":
                self.taken_away.clear()  # it was refused
            else:
                others = [one for one in self.running if one is not operation and one.name == name]
                self.taken_away |= {str(name)} if was_taken_away and not others else set()
                self._check_restored(str(name))
            raise
        finally:
            for before, after in pairwise(stages):
                if before is not after and after not in TRANSITIONS[before]:
                    self.faults.append(f"a listener heard {after} after {before}")

    def _check_restored(self, failed: str) -> None:
        """A load failed: who went for it is back, or is being loaded, or it was said that this failed."""
        events = self.lifecycle.events(limit=1000)
        of_it = [event for event in events if event.model == failed]
        there = {str(one.key.ref) for one in [*self.fleet.jobs, *self.fleet.residents]}
        if self.fleet.is_closed or failed in there or not of_it or of_it[-1].kind not in BROKEN_OFF:
            return
        began = [event.event_id for event in of_it if event.kind is EventKind.LOAD_STARTED][-1]
        for name, event in {event.model: event for event in events if event.model not in there}.items():
            went = event.kind is EventKind.UNLOADED and event.reason == f"made room for {failed}"
            if went and event.event_id > began and name not in self.taken_away | self.called_off:
                self.faults.append(f"{name} went for {failed}, which failed, and is not back")

    def _note_unload(self, name: str | None) -> None:
        """From now on nobody may bring it back, unless somebody asks or asked for it."""
        asked = {request.name for request in self.waiting}
        is_loaded = any(resident.key.ref.name == name for resident in self.fleet.residents)
        is_loading = any(job.key.ref.name == name for job in self.fleet.jobs)
        if name and is_loading:
            self.called_off.add(name)  # perhaps its return
        elif name and is_loaded and name not in asked:
            self.taken_away.add(name)

    def request(self, name: str | None) -> None:
        self.taken_away.discard(name or "")
        request = Request(name, self.clock.monotonic_s(), self.crashed)
        self.requests.append(request)
        request.task = watched(request.run(self.lifecycle), f"request of {name}")

    def crash(self, engine: ScriptedEngine) -> None:
        """The engine dies without being asked to."""
        self.crashed.append(engine)
        engine.crash()

    # What engines tell

    def launches(self, spec: EngineSpec) -> None:
        if self.launcher.launching:
            self.faults.append(f"{spec.model} is launched beside another launch")
        there = [(one.spec.model, one.spec.dtype, one.spec.quantization) for one in self.fleet.residents]
        if (spec.model, spec.dtype, spec.quantization) in there:
            self.faults.append(f"{spec.model} is launched while it is there")
        if len(there) >= self.policy.max_resident_models:
            self.faults.append(f"{spec.model} is launched without a place: {there}")
        if spec.model in self.taken_away:
            self.faults.append(f"{spec.model} is brought back, though it was unloaded on purpose")

    def ends(self, engine: WatchedEngine) -> None:
        name = engine.facts.model
        if self.fleet.is_closed:
            return
        asked = [operation for operation in self.operations if name in operation.may_cut and not operation.is_over]
        users = sum(request.engine is engine for request in self.held)
        late_s = self.clock.monotonic_s() - DRAIN_TIMEOUT_S + 1e-6  # sums of seconds are not exact
        if users and not any(operation.began_s <= late_s for operation in asked):
            self.faults.append(f"{name} is cut off with {users} requests, and no operator wanted it")
        resident = next((r for r in self.fleet.residents if r.engine is engine), None)
        if resident is not None and resident.pinned and not asked:
            self.faults.append(f"{name} is pinned, and went though no operator wanted it")

    # Who is there

    @property
    def alive(self) -> list[ScriptedEngine]:
        return [engine for engine in self.launcher.engines if not engine.is_closed]

    @property
    def gates(self) -> list[Gate]:
        """All that can be held: of the hub, of the launcher, of the newest engines' ends."""
        launcher, models = self.launcher, self.models
        ends = [engine.closing_gate for engine in launcher.engines]
        return [models.profile_gate, models.fetch_gate, launcher.gate, launcher.warming_gate, *ends[::-1]]

    @property
    def running(self) -> list[Operation]:
        return [operation for operation in self.operations if not operation.task.done()]

    @property
    def held(self) -> list[Request]:
        return [request for request in self.requests if request.is_held]

    @property
    def waiting(self) -> list[Request]:
        return [request for request in self.requests if request.is_waiting]

    # What must always be so

    def check(self, *, settled: bool) -> None:
        assert not self.faults, self.faults
        residents = list(self.fleet.residents)
        assert len(residents) <= self.policy.max_resident_models
        keys = [resident.key for resident in residents if not resident.engine.is_closed]
        assert len(keys) == len(set(keys)), "two living models of one key"
        promised = sum(max(resident.spec.promised_bytes, resident.held_bytes) for resident in residents)
        assert promised <= (self.policy.memory_budget_bytes or promised)
        for one in [*self.operations, *self.requests]:
            if one.task.done() and not one.task.cancelled():
                error = one.task.exception()
                assert error is None or isinstance(error, InferapiError), repr(error)
        self.lifecycle.status()
        if settled:
            self._check_settled()

    def _check_settled(self) -> None:
        assert self.fleet.is_closed or self.lifecycle.unready_reason is None
        known = {id(resident.engine) for resident in self.fleet.residents}
        assert all(id(engine) in known for engine in self.alive), "an engine that nobody knows"
        for request in self.held:
            assert request.engine is not None
            assert not request.engine.is_closed, "a lease of an engine that is gone"
        oldest_s = self.clock.monotonic_s() - LOAD_WAIT_S
        assert all(request.began_s > oldest_s for request in self.waiting), "a request waits for too long"
        for resident in self.fleet.residents:
            users = sum(request.engine is resident.engine for request in self.held)
            assert resident.leases == users

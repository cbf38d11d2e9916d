"""Whatever operators, clients, engines and time do, and in whatever order: nobody is forgotten, and nothing leaks."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fakes import GIB, make_device, settle
from inferapi.domain.errors import HubUnavailable, ModelCrashed, ModelLoadFailed, OutOfMemory
from inferapi.domain.model import LoadOptions, Quantization
from lifecycle_world import NAMES, World

names = st.sampled_from(NAMES)
some_names = st.sampled_from((None, *NAMES))
some_options = st.sampled_from([None, LoadOptions("float32"), LoadOptions(quantization=Quantization.INT8)])
pauses = st.sampled_from([None, None, None, 0, 1, 2, 3, 4])
"""Turns of the event loop until the next rule; ``None`` for as many as it takes."""
moments = st.integers(0, 12)
choices = st.integers(0, 5)
operations = st.tuples(st.sampled_from(["load", "change", "unload"]), some_names)

BROKEN = {
    "broken": lambda name: ModelLoadFailed(model=name, problem="no"),
    "memory": lambda _: OutOfMemory(),
    "crash": lambda name: ModelCrashed(model=name),
}
obstacles = st.sampled_from([None, None, None, None, 0, 1, 2, 3, *BROKEN])


class LifecycleMachine(RuleBasedStateMachine):
    @initialize(
        places=st.integers(1, 3),
        budget_gib=st.sampled_from([None, None, 6]),
        pinned=st.sampled_from([(), (), ("third",)]),
        first=some_names,
        users=st.integers(0, 2),
    )
    def begin(self, places, budget_gib, pinned, first, users):
        self.event_loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.event_loop)
        self.settled = True
        self.run(self._begin(places, budget_gib, pinned), None)
        logging.getLogger("inferapi").addHandler(self.world)
        if first:
            self.do(lambda: self.world.load(first), None)
            self.do(lambda: [self.world.request(first) for _ in range(users)], None)

    async def _begin(self, places, budget_gib, pinned):
        self.world = World(
            max_resident_models=places,
            memory_budget_bytes=budget_gib and budget_gib * GIB,
            pinned_models=pinned,
            max_batch=2,
            max_queue=2,
            inactivity_threshold_s=45,
            load_stall_timeout_s=40.0,
        )
        await self.world.lifecycle.start()

    def run(self, work, pause):
        async def whole():
            await work
            if pause is None:
                await settle()
            else:
                for _ in range(pause):
                    await asyncio.sleep(0)

        self.event_loop.run_until_complete(whole())
        self.settled = pause is None

    def do(self, action, pause):
        async def act():
            action()

        self.run(act(), pause)

    def operate(self, kind, name):
        if kind == "unload":
            self.world.unload(name)
        elif name is not None:
            getattr(self.world, kind)(name)

    # Operators

    def hinder(self, name, obstacle):
        """A gate that is held, or an error that the next launch meets."""
        if isinstance(obstacle, int):
            self.world.gates[obstacle].hold()
        elif obstacle and name:
            self.world.launcher.errors[name] = [BROKEN[obstacle](name)] * 2

    @rule(operation=operations, obstacle=obstacles, pause=pauses)
    def operator(self, operation, obstacle, pause):
        self.hinder(operation[1], obstacle)
        self.do(lambda: self.operate(*operation), pause)

    @rule(several=st.lists(operations, min_size=2, max_size=3), pause=pauses)
    def operators_at_once(self, several, pause):
        self.do(lambda: [self.operate(*operation) for operation in several], pause)

    @rule(name=names, options=some_options, pinned=st.sampled_from([None, True]), pause=pauses)
    def load_otherwise(self, name, options, pinned, pause):
        self.do(lambda: self.world.load(name, options, pinned=pinned), pause)

    @precondition(lambda self: self.world.running)
    @rule(which=choices, pause=pauses)
    def operator_leaves(self, which, pause):
        running = self.world.running
        self.do(running[which % len(running)].task.cancel, pause)

    @rule(threshold_s=st.sampled_from([-1, 1, 45]), pause=pauses)
    def set_threshold(self, threshold_s, pause):
        self.do(lambda: self.world.lifecycle.set_inactivity_threshold(threshold_s), pause)

    # Clients

    @rule(name=some_names, count=st.integers(1, 2), obstacle=obstacles, pause=pauses)
    def requests(self, name, count, obstacle, pause):
        self.hinder(name, obstacle)
        self.do(lambda: [self.world.request(name) for _ in range(count)], pause)

    @precondition(lambda self: self.world.held)
    @rule(which=choices, pause=pauses)
    def request_ends(self, which, pause):
        held = self.world.held
        self.do(held[which % len(held)].finish.set, pause)

    @precondition(lambda self: self.world.waiting)
    @rule(which=choices, pause=pauses)
    def client_leaves(self, which, pause):
        waiting = self.world.waiting
        self.do(waiting[which % len(waiting)].task.cancel, pause)

    # The world around

    @rule(duration_s=st.sampled_from([0.6, 5.0, 10.0, 21.0, 45.0, 61.0]))
    def time_passes(self, duration_s):
        self.run(self.world.clock.advance(duration_s), None)

    @precondition(lambda self: self.world.alive)
    @rule(which=choices, pause=pauses)
    def an_engine_dies(self, which, pause):
        alive = self.world.alive
        self.do(lambda: self.world.crash(alive[which % len(alive)]), pause)

    @rule(name=names, where=st.sampled_from(["profile_errors", "fetch_errors"]))
    def the_hub_comes_or_goes(self, name, where):
        errors = getattr(self.world.models, where)
        if errors.pop(name, None) is None:
            errors[name] = HubUnavailable(model=name)

    @rule(which=choices)
    def a_gate_closes(self, which):
        gates = self.world.gates
        gates[which % len(gates)].hold()

    @rule(moment=moments)
    def all_gates_open(self, moment):
        self.do(lambda: [gate.open() for gate in self.world.gates], None if moment == 0 else moment)

    @rule(free_gib=st.sampled_from([3, 6, 12, 12]))
    def others_take_memory(self, free_gib):
        self.world.probe.reading = make_device(free_bytes=free_gib * GIB, native_kernels=True)

    # What must always be so

    @invariant()
    def nothing_is_wrong(self):
        if hasattr(self, "world"):
            self.world.check(settled=self.settled)

    def teardown(self):
        if not hasattr(self, "world"):
            return
        try:
            self._end()
        finally:
            logging.getLogger("inferapi").removeHandler(self.world)
            for task in asyncio.all_tasks(self.event_loop):
                task.cancel()
            self.event_loop.run_until_complete(settle())
            asyncio.set_event_loop(None)
            self.event_loop.close()

    def _end(self):
        """Whatever is held is let go; then everybody is answered; then everything ends."""
        world = self.world
        for gate in world.gates:
            gate.open()
        for _ in range(6):
            for request in world.requests:
                request.finish.set()
            self.run(world.clock.advance(25), None)
            world.check(settled=True)
        assert [operation.kind for operation in world.running] == []
        assert [request.name for request in world.requests if not request.task.done()] == []
        assert list(world.fleet.jobs) == []
        assert {resident.leavers for resident in world.fleet.residents} <= {0}
        self.run(world.lifecycle.drain(), None)
        assert (world.alive, list(world.fleet.residents), list(world.fleet.waiting)) == ([], [], [])
        assert asyncio.all_tasks(self.event_loop) == set()
        world.check(settled=True)


LifecycleMachine.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
TestLifecycle = pytest.mark.timeout(170)(LifecycleMachine.TestCase)

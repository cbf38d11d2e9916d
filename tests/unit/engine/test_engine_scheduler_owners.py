"""Slots, prompts and places in the queue are shared between owners: a flood of one is its own problem."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferapi.domain.errors import QueueFull
from inferapi.engine.block_pool import BlockPool
from inferapi.engine.request import Request
from inferapi.engine.scheduler import Plan, Scheduler

BLOCK_TOKENS = 4


def scheduler_of(*, slots: int = 2, waiting: int = 8, blocks: int = 512, step: int = 16) -> Scheduler:
    return Scheduler(
        max_slots=slots,
        max_waiting=waiting,
        step_tokens=step,
        idle_step_tokens=step,
        pool=BlockPool(blocks, BLOCK_TOKENS),
    )


@pytest.fixture
def prompt(new_request) -> Callable[..., Request]:
    def make(request_id: int, owner: str, length: int = 3, new: int = 8) -> Request:
        request = new_request(request_id, [0] * length, max_new_tokens=new)
        request.salt = owner
        return request

    return make


def compute(plan: Plan | None) -> None:
    assert plan is not None
    for segment in plan.segments:
        samples = segment.samples
        segment.request.num_computed_tokens += segment.length
        if samples:
            segment.request.tokens.append(0)


def running(scheduler: Scheduler) -> list[str]:
    return [request.salt for request in scheduler.running]


def test_the_next_slot_goes_to_who_has_none_however_many_wait(prompt):
    scheduler = scheduler_of(slots=2, waiting=100)
    flood = [prompt(n, "flood") for n in range(20)]
    for request in flood:
        scheduler.submit(request)
    scheduler.plan(0.0)
    scheduler.submit(prompt(99, "ann"))

    scheduler.remove(flood[0])
    scheduler.plan(0.0)

    assert running(scheduler) == ["flood", "ann"]


def test_with_one_slot_a_flood_is_ahead_by_one_request(prompt):
    scheduler = scheduler_of(slots=1, waiting=100)
    for n in range(20):
        scheduler.submit(prompt(n, "flood"))
    scheduler.plan(0.0)
    scheduler.submit(prompt(98, "ann"))
    scheduler.submit(prompt(99, "ann"))

    order = []
    for _ in range(6):
        order += running(scheduler)
        scheduler.remove(scheduler.running[0])
        scheduler.plan(0.0)

    assert order == ["flood", "flood", "ann", "flood", "ann", "flood"]


def test_two_floods_have_half_of_the_slots_each(prompt):
    scheduler = scheduler_of(slots=4, waiting=100)
    for n in range(20):
        scheduler.submit(prompt(n, "ann"))
    for n in range(20, 40):
        scheduler.submit(prompt(n, "bob"))

    scheduler.plan(0.0)

    assert sorted(running(scheduler)) == ["ann", "ann", "bob", "bob"]


def test_a_large_request_waits_for_blocks_and_is_not_overtaken_by_owners_that_have_as_much(prompt):
    scheduler = scheduler_of(slots=4, blocks=8)
    first, large, small = prompt(0, "ann", 17), prompt(1, "bob", 25), prompt(2, "cid", 1, new=1)
    for request in (first, large, small):
        scheduler.submit(request)

    scheduler.plan(0.0)
    assert scheduler.running == (first,)

    scheduler.remove(first)
    scheduler.plan(0.0)
    assert scheduler.running == (large,)


def test_who_runs_nothing_need_not_wait_until_the_large_request_of_another_fits(prompt):
    scheduler = scheduler_of(slots=4, blocks=8)
    first, large, small = prompt(0, "ann", 17), prompt(1, "ann", 25), prompt(2, "bob", 1, new=1)
    scheduler.submit(first)
    scheduler.plan(0.0)
    scheduler.submit(large)
    scheduler.submit(small)

    scheduler.plan(0.0)

    assert scheduler.running == (first, small)


def test_a_prompt_is_not_computed_behind_all_the_shorter_ones_of_another_owner(prompt):
    scheduler = scheduler_of(slots=8, step=32)
    scheduler.submit(prompt(9, "old", 200))
    for n in range(5):
        scheduler.submit(prompt(n, "flood", 6))
    scheduler.submit(prompt(5, "ann", 10))
    scheduler.submit(prompt(6, "ann", 4))

    plan = scheduler.plan(0.0)

    # 24 beside the quarter of the oldest: flood's prompts end at 6, 12, 18 and so on, ann's at 4 and 14.
    spans = [(segment.request.request_id, segment.length) for segment in plan.prefills]
    assert spans == [(6, 4), (0, 6), (1, 6), (5, 8), (9, 8)]


def test_a_full_queue_gives_a_place_of_the_flood_to_another_owner(prompt):
    scheduler = scheduler_of(slots=1, waiting=3)
    flood = [prompt(n, "flood") for n in range(4)]
    for request in flood:
        assert scheduler.submit(request) is None
    with pytest.raises(QueueFull):
        scheduler.submit(prompt(4, "flood"))

    displaced = scheduler.submit(prompt(5, "ann"))

    assert displaced is flood[-1]
    assert scheduler.waiting == 4
    scheduler.plan(0.0)
    with pytest.raises(QueueFull):  # as many as the flood has left, to one: a place taken back would be taken again
        scheduler.submit(prompt(6, "ann"))


OWNERS, SLOTS, WAITING, BLOCKS = "abc", 3, 4, 8
moves = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from(OWNERS), st.integers(1, 14), st.integers(1, 10)),
    st.tuples(st.just("cancel"), st.just(""), st.integers(0, 40), st.just(0)),
    st.tuples(st.just("step"), st.just(""), st.just(0), st.just(0)),
    st.tuples(st.just("step"), st.just(""), st.just(0), st.just(0)),
)


class Engine:
    """The scheduler and what is known of it, checked after every step."""

    def __init__(self) -> None:
        self.pool = BlockPool(BLOCKS, BLOCK_TOKENS)
        self.scheduler = Scheduler(
            max_slots=SLOTS, max_waiting=WAITING, step_tokens=5, idle_step_tokens=9, pool=self.pool
        )
        self.alive: list[Request] = []
        self.finished: list[Request] = []

    def submit(self, request: Request) -> None:
        try:
            displaced = self.scheduler.submit(request)
        except QueueFull:
            own = self._waiting(request.salt)
            assert max(self._waiting(owner) for owner in OWNERS) <= own + 1  # nobody has more to give
            return
        if displaced is not None:
            assert displaced.salt != request.salt
            assert displaced.slot is None
            self.alive.remove(displaced)
        self.alive.append(request)

    def cancel(self, index: int) -> None:
        if self.alive:
            self.scheduler.remove(self.alive.pop(index % len(self.alive)))

    def step(self) -> None:
        before = {id(request) for request in self.scheduler.running}
        held = {owner: sum(r.salt == owner for r in self.scheduler.running) for owner in OWNERS}
        plan = self.scheduler.plan(0.0)
        assert (plan is None) == (not self.alive)
        for request in self.scheduler.running:  # in the order of admission
            if id(request) not in before:
                left = [owner for owner in OWNERS if self._waiting(owner)]  # they did not even get a slot after it
                assert all(held[request.salt] <= held[owner] for owner in left)
                held[request.salt] += 1
        for segment in plan.segments if plan else ():
            self.advance(segment.request, segment.length, samples=segment.samples)

    def advance(self, request: Request, length: int, *, samples: bool) -> None:
        request.num_computed_tokens += length
        if samples:
            request.tokens.append(0)
        if request.num_completion_tokens == request.sampling.max_new_tokens:
            self.alive.remove(request)
            self.scheduler.remove(request)
            self.finished.append(request)

    def check(self) -> None:
        assert len(self.scheduler.running) + self.scheduler.waiting == len(self.alive)
        assert self.scheduler.waiting <= WAITING + SLOTS
        reserved = sum(request.reserved_blocks for request in self.scheduler.running)
        assert self.scheduler.kv_cache_usage_ratio == reserved / BLOCKS
        for owner in OWNERS:  # within an owner nobody overtakes
            slots = [request.slot is not None for request in self.alive if request.salt == owner]
            assert slots == sorted(slots, reverse=True)

    def _waiting(self, owner: str) -> int:
        return sum(request.salt == owner and request.slot is None for request in self.alive)


@settings(max_examples=300, deadline=None)
@given(made=st.lists(moves, max_size=60))
def test_whatever_owners_send_slots_go_to_who_holds_the_fewest_and_everybody_finishes(new_request, made):
    engine = Engine()
    for number, (move, owner, first, second) in enumerate(made):
        if move == "submit":
            request = new_request(number, [0] * first, max_new_tokens=second)
            request.salt = owner
            engine.submit(request)
        elif move == "cancel":
            engine.cancel(first)
        else:
            engine.step()
        engine.check()
    for _ in range(sum(request.max_tokens for request in engine.alive)):
        if not engine.scheduler.is_idle:
            engine.step()
            engine.check()

    assert (engine.alive, engine.scheduler.is_idle, engine.pool.usage_ratio) == ([], True, 0.0)
    assert all(len(request.tokens) == request.max_tokens for request in engine.finished)


def test_a_flood_of_requests_that_never_ends_keeps_nobody_from_finishing(prompt):
    scheduler = scheduler_of(slots=2, waiting=8)
    ann = prompt(0, "ann", 40, new=4)
    scheduler.submit(prompt(1, "flood", 8, new=1))
    scheduler.submit(prompt(2, "flood", 8, new=1))
    scheduler.submit(ann)
    number = 3
    for _ in range(60):
        compute(scheduler.plan(0.0))
        for request in scheduler.running:
            if request.num_completion_tokens == request.sampling.max_new_tokens:
                scheduler.remove(request)
        if len(ann.tokens) == 44:
            break
        while scheduler.waiting < 8:
            scheduler.submit(prompt(number, "flood", 8, new=1))
            number += 1
    assert len(ann.tokens) == 44

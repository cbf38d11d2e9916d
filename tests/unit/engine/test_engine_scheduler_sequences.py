"""Whatever the order of arrivals, cancellations and steps: nothing leaks and everybody finishes."""

from contextlib import suppress
from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from inferapi.domain.errors import QueueFull
from inferapi.domain.generation import FinishReason
from inferapi.engine.block_pool import BlockPool
from inferapi.engine.request import Phase, Request
from inferapi.engine.scheduler import Plan, Scheduler

BLOCKS, BLOCK_TOKENS, SLOTS, WAITING, CHUNK, IDLE_CHUNK = 6, 4, 3, 4, 5, 9

submits = st.tuples(st.just("submit"), st.integers(1, 14), st.integers(1, 10))  # at most 24 tokens: all of the pool
cancels = st.tuples(st.just("cancel"), st.integers(0, 40), st.just(0))
steps = st.tuples(st.just("step"), st.just(0), st.just(0))


class Engine:
    """The scheduler and its bookkeeping, checked after every move."""

    def __init__(self) -> None:
        self.pool = BlockPool(BLOCKS, BLOCK_TOKENS)
        self.scheduler = Scheduler(
            max_slots=SLOTS,
            max_waiting=WAITING,
            step_tokens=CHUNK,
            idle_step_tokens=IDLE_CHUNK,
            pool=self.pool,
        )
        self.alive: list[Request] = []
        self.finished: list[Request] = []
        self.cancelled: list[Request] = []
        self.steps = 0

    def submit(self, request: Request) -> None:
        with suppress(QueueFull):
            self.scheduler.submit(request)
            self.alive.append(request)

    def cancel(self, index: int) -> None:
        if self.alive:
            request = self.alive.pop(index % len(self.alive))
            self.scheduler.remove(request)
            self.cancelled.append(request)

    def step(self) -> None:
        self.steps += 1
        plan = self.scheduler.plan(float(self.steps))
        assert (plan is None) == (not self.alive)  # no step is wasted while anybody is there
        if plan is not None:
            self.check_plan(plan)
            for segment in plan.segments:
                self.advance(segment.request, segment.length, samples=segment.samples)

    def advance(self, request: Request, length: int, *, samples: bool) -> None:
        request.num_computed_tokens += length
        if samples:
            request.tokens.append(0)
        if request.num_completion_tokens == request.sampling.max_new_tokens:
            request.finish_reason = FinishReason.LENGTH
            self.alive.remove(request)
            self.scheduler.remove(request)
            self.finished.append(request)

    def check_plan(self, plan: Plan) -> None:
        decoding = [request for request in self.scheduler.running if request.phase is Phase.DECODE]
        assert [segment.request for segment in plan.decodes] == decoding
        assert sum(segment.length for segment in plan.prefills) <= (CHUNK if decoding else IDLE_CHUNK)
        for segment in plan.segments:
            assert segment.start == segment.request.num_computed_tokens
            assert len(segment.request.blocks) == self.pool.blocks_for(segment.start + segment.length)

    def check(self) -> None:
        running = self.scheduler.running
        taken = list(chain.from_iterable(request.blocks for request in running))
        assert len(taken) == len(set(taken))
        assert set(taken) <= set(range(BLOCKS))
        assert all(len(request.blocks) <= request.reserved_blocks for request in running)
        reserved = sum(request.reserved_blocks for request in running)
        assert reserved <= BLOCKS
        assert self.scheduler.kv_cache_usage_ratio == reserved / BLOCKS
        slots = [request.slot for request in running]
        assert len(set(slots)) == len(slots) <= SLOTS
        assert set(slots) <= set(range(SLOTS))
        assert len(running) + self.scheduler.waiting == len(self.alive)
        admitted = [request.request_id for request in self.alive if request.slot is not None]
        assert admitted == [request.request_id for request in self.alive][: len(admitted)]  # nobody overtook


@settings(max_examples=200, deadline=None)
@given(moves=st.lists(st.one_of(submits, submits, cancels, steps, steps), max_size=60))
def test_no_sequence_of_moves_leaks_blocks_or_slots_and_everybody_finishes(new_request, moves) -> None:
    engine = Engine()
    for number, (move, first, second) in enumerate(moves):
        if move == "submit":
            engine.submit(new_request(number, [0] * first, max_new_tokens=second))
        elif move == "cancel":
            engine.cancel(first)
        else:
            engine.step()
        engine.check()
    work = sum(request.max_tokens for request in engine.alive)
    for _ in range(work):
        if engine.scheduler.is_idle:
            break
        engine.step()
        engine.check()

    assert engine.alive == []
    assert all(len(request.tokens) == request.max_tokens for request in engine.finished)
    assert engine.scheduler.is_idle
    assert engine.pool.usage_ratio == 0.0
    assert engine.pool.reserve(BLOCKS)
    assert [engine.pool.take() for _ in range(BLOCKS)] == list(range(BLOCKS))
    for slot in range(SLOTS):
        engine.scheduler.submit(new_request(1000 + slot, max_new_tokens=1))
    engine.pool.give_back(range(BLOCKS), reserved=BLOCKS)
    engine.scheduler.plan(0.0)
    assert {request.slot for request in engine.scheduler.running} == set(range(SLOTS))

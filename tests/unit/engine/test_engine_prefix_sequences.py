"""Whatever the order of arrivals, cancellations, steps and failures: every request reads its own tokens only."""

from contextlib import suppress
from itertools import chain, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferapi.domain.errors import QueueFull
from inferapi.domain.generation import FinishReason
from inferapi.engine.block_pool import BlockPool
from inferapi.engine.request import Request
from inferapi.engine.scheduler import Plan, Scheduler

BLOCKS, BLOCK_TOKENS, SLOTS = 9, 3, 3
GARBAGE = ("garbage",)

submits = st.tuples(
    st.just("submit"),
    st.integers(1, 17),  # tokens of the prompt
    st.tuples(st.integers(1, 9), st.sampled_from(("ann", "bob")), st.integers(0, 2)),  # answer, salt, kind of prompt
)
cancels = st.tuples(st.just("cancel"), st.integers(0, 40), st.none())
steps = st.tuples(st.just("step"), st.just(0), st.none())
failures = st.tuples(st.just("fail"), st.integers(0, 20), st.none())


def prompt(length: int, kind: int) -> list[int]:
    """Prompts that begin alike: kind 0 and 1 for four tokens, kind 2 with nobody."""
    return [kind // 2 if place < 4 else 10 * kind + place % 3 for place in range(length)]


class Engine:
    """The scheduler on a memory that notes, for every place, whose tokens up to there were computed in it."""

    def __init__(self, blocks: int = BLOCKS) -> None:
        self.pool = BlockPool(blocks, BLOCK_TOKENS)
        self.scheduler = Scheduler(max_slots=SLOTS, max_waiting=4, step_tokens=5, idle_step_tokens=8, pool=self.pool)
        self.memory: dict[tuple[int, int], tuple[object, ...]] = {}
        self.alive: list[Request] = []
        self.finished: list[Request] = []

    def submit(self, request: Request) -> None:
        with suppress(QueueFull):
            self.scheduler.submit(request)
            self.alive.append(request)

    def cancel(self, index: int) -> None:
        if self.alive:
            self.scheduler.remove(self.alive.pop(index % len(self.alive)))

    def step(self) -> None:
        plan = self.scheduler.plan(0.0)
        if plan is None:
            return
        self.move(plan, len(plan.moves))
        self.compute(plan)
        for segment in plan.segments:
            request = segment.request
            samples = segment.samples
            self.scheduler.advance(segment)
            if samples:
                request.tokens.append(sum(request.tokens) % 2)
            if request.num_completion_tokens == request.sampling.max_new_tokens:
                request.finish_reason = FinishReason.LENGTH
                self.alive.remove(request)
                self.scheduler.remove(request)
                self.finished.append(request)

    def fail(self, batches: int) -> None:
        """A step that ends after some of its moves, or in the middle of its pass."""
        plan = self.scheduler.plan(0.0)
        if plan is None:
            return
        if batches < len(plan.moves):
            self.move(plan, batches)
            for _, target in plan.moves[batches]:  # made in some layers, and not in others
                self.fill(target, GARBAGE)
        else:
            self.move(plan, len(plan.moves))
            for segment in plan.segments:
                self.write(segment.request, segment.start, segment.start + segment.length, GARBAGE)
        victims = [segment.request for segment in plan.prefills or plan.decodes]
        self.scheduler.give_up(victims)
        for request in victims:
            self.alive.remove(request)

    def move(self, plan: Plan, batches: int) -> None:
        for moves in plan.moves[:batches]:
            assert len({target for _, target in moves}) == len(moves)
            before = dict(self.memory)
            for (source, target), offset in product(moves, range(BLOCK_TOKENS)):
                self.memory[target, offset] = before[source, offset]

    def fill(self, block: int, content: tuple[object, ...]) -> None:
        self.memory |= {(block, offset): content for offset in range(BLOCK_TOKENS)}

    def write(self, request: Request, start: int, end: int, content: tuple[object, ...] | None = None) -> None:
        for place in range(start, end):
            block = request.blocks[place // BLOCK_TOKENS]
            if place % BLOCK_TOKENS == 0:
                self.fill(block, ())
            self.memory[block, place % BLOCK_TOKENS] = content or (request.salt, *request.tokens[: place + 1])

    def compute(self, plan: Plan) -> None:
        for segment in plan.segments:
            self.write(segment.request, segment.start, segment.start + segment.length)
        for segment in plan.segments:  # after all have written: nobody wrote into another one's
            request = segment.request
            for place in range(segment.start + segment.length):
                seen = self.memory[request.blocks[place // BLOCK_TOKENS], place % BLOCK_TOKENS]
                assert seen == (request.salt, *request.tokens[: place + 1])

    def check(self) -> None:
        running, pool = self.scheduler.running, self.pool
        held = list(chain.from_iterable(request.blocks for request in running))
        assert len(held) == len(set(held)) == pool.num_held
        assert set(held) <= set(range(pool.num_blocks))
        assert 0 <= pool.num_idle <= pool.num_blocks - pool.num_held
        assert all(len(request.blocks) <= request.reserved_blocks for request in running)
        reserved = sum(request.reserved_blocks for request in running)
        assert self.scheduler.kv_cache_usage_ratio == reserved / pool.num_blocks
        for request in running:
            assert request.num_cached_tokens < request.num_prompt_tokens
            assert request.num_cached_tokens % BLOCK_TOKENS == 0


@settings(max_examples=400, deadline=None)
@given(moves=st.lists(st.one_of(submits, submits, cancels, steps, steps, steps, failures), max_size=80))
def test_no_sequence_of_moves_shows_a_request_what_is_not_its_own(new_request, moves) -> None:
    engine = Engine()
    for number, (move, amount, of_request) in enumerate(moves):
        if move == "submit":
            answer, salt, kind = of_request
            request = new_request(number, prompt(amount, kind), max_new_tokens=answer)
            request.salt = salt
            engine.submit(request)
        elif move == "step":
            engine.step()
        else:
            getattr(engine, move)(amount)
        engine.check()
    for _ in range(sum(request.max_tokens for request in engine.alive)):
        engine.step()
        engine.check()

    assert engine.alive == []
    assert all(len(request.tokens) == request.max_tokens for request in engine.finished)
    assert (engine.pool.num_held, engine.pool.usage_ratio) == (0, 0.0)
    assert engine.pool.reserve(BLOCKS)
    assert [engine.pool.take() for _ in range(BLOCKS)] == list(range(BLOCKS))


@settings(max_examples=100, deadline=None)
@given(length=st.integers(1, 17), answer=st.integers(1, 9), kind=st.integers(0, 2))
def test_a_prompt_again_and_a_next_turn_reuse_every_full_block_of_their_salt(
    new_request, length: int, answer: int, kind: int
) -> None:
    engine = Engine(blocks=40)

    def cached_tokens(number: int, tokens: list[int], salt: str) -> int:
        request = new_request(number, tokens, max_new_tokens=answer)
        request.salt = salt
        engine.submit(request)
        while engine.alive:
            engine.step()
            engine.check()
        return request.num_cached_tokens

    first = cached_tokens(0, prompt(length, kind), "ann")
    said = engine.finished[0].tokens
    again = cached_tokens(1, prompt(length, kind), "ann")
    turn = cached_tokens(2, [*said, 7], "ann")
    other = cached_tokens(3, prompt(length, kind), "bob")

    assert (first, other) == (0, 0)
    assert again == (length - 1) // BLOCK_TOKENS * BLOCK_TOKENS  # the first token follows from what is computed anew
    assert turn == (length + answer - 1) // BLOCK_TOKENS * BLOCK_TOKENS  # an answer's last token is never computed


@pytest.mark.parametrize("batches", [0, 99], ids=["while it moved blocks", "later"])
def test_what_a_failed_step_may_have_left_half_moved_serves_nobody(new_request, batches: int) -> None:
    engine = Engine()
    kept, failing, again = (new_request(n, prompt(12, kind), max_new_tokens=1) for n, kind in enumerate((0, 2, 0)))
    engine.submit(kept)
    while engine.alive:
        engine.step()
    engine.submit(failing)

    engine.fail(batches)
    assert (engine.pool.num_held, engine.pool.num_idle, engine.pool.usage_ratio) == (0, 0, 0.0)

    engine.submit(again)
    while engine.alive:
        engine.step()
    assert again.num_cached_tokens == 0
    assert again.tokens == kept.tokens

"""What the step loop says it did: every token once, whatever becomes of its request."""

from itertools import count

import pytest
import torch

from inferapi.domain.errors import OutOfMemory
from inferapi.domain.generation import Chunk
from inferapi.domain.telemetry import FirstToken, StepTally
from inferapi.engine.block_pool import BlockPool
from inferapi.engine.loop import EngineLoop
from inferapi.engine.request import Request
from inferapi.engine.scheduler import Plan, Scheduler

EOS = 256


class Runner:
    """Every request says the same token again and again; passes that are named find no memory."""

    def __init__(self, fails_at: tuple[int, ...] = ()) -> None:
        self._fails_at = fails_at
        self._passes = count(1)

    def run(self, plan: Plan) -> torch.Tensor:
        if next(self._passes) in self._fails_at:
            raise MemoryError
        logits = torch.zeros(sum(segment.samples for segment in plan.segments), EOS + 1)
        logits[:, 65] = 9.0
        return logits

    def release(self, request: Request) -> None:
        pass


class Engine:
    """A loop, whose clock stands still until a test moves it, and the tallies of its steps."""

    def __init__(self, fails_at: tuple[int, ...] = (), slots: int = 4) -> None:
        self.now_s = 100.0
        scheduler = Scheduler(
            max_slots=slots, max_waiting=9, step_tokens=8, idle_step_tokens=16, pool=BlockPool(100, 4)
        )
        self.loop = EngineLoop(
            scheduler,
            Runner(fails_at),
            decode=lambda ids: "".join(map(chr, ids)),
            eos_token_ids=[EOS],
            now_s=lambda: self.now_s,
        )

    def step(self, after_s: float = 0.0) -> StepTally | None:
        self.now_s += after_s
        self.outputs = self.loop.step()
        return self.loop.take_tally()


@pytest.fixture
def engine() -> Engine:
    return Engine()


def submit(engine: Engine, new_request, request_id: int, prompt=(1, 2, 3), max_new_tokens: int = 3) -> Request:
    request = new_request(request_id, prompt, max_new_tokens=max_new_tokens)
    request.arrived_s = engine.now_s
    engine.loop.submit(request)
    return request


def test_a_loop_that_did_nothing_has_nothing_to_tell(engine) -> None:
    assert engine.loop.take_tally() is None
    assert engine.step() is None


def test_a_first_token_tells_of_the_prompt_and_of_the_times_before_it(engine, new_request) -> None:
    submit(engine, new_request, 1)
    assert engine.step(after_s=2.0) == StepTally(3, 0, 1, (FirstToken(2.0, 2.0),))


def test_later_tokens_tell_how_long_they_took_those_of_one_step_together(engine, new_request) -> None:
    submit(engine, new_request, 1)
    submit(engine, new_request, 2)
    engine.step()
    assert engine.step(after_s=0.5) == StepTally(generation_tokens=2, gaps=((0.5, 2),))


def test_a_request_that_came_later_has_gaps_of_its_own(engine, new_request) -> None:
    submit(engine, new_request, 1, max_new_tokens=9)
    engine.step()
    submit(engine, new_request, 2, max_new_tokens=9)
    told = engine.step(after_s=0.25)
    assert told == StepTally(3, 0, 2, (FirstToken(0.25, 0.25),), ((0.25, 1),))
    assert engine.step(after_s=0.5) == StepTally(generation_tokens=2, gaps=((0.5, 2),))


def test_what_was_not_asked_for_is_kept_and_told_once(engine, new_request) -> None:
    submit(engine, new_request, 1)
    engine.loop.step()
    engine.now_s += 0.5
    engine.loop.step()
    assert engine.loop.take_tally() == StepTally(3, 0, 2, (FirstToken(0.0, 0.0),), ((0.5, 1),))
    assert engine.loop.take_tally() is None


def test_tokens_of_a_request_that_was_cancelled_were_made_all_the_same(engine, new_request) -> None:
    submit(engine, new_request, 1)
    engine.loop.step()
    engine.loop.cancel(1)
    assert engine.loop.is_idle
    assert engine.loop.take_tally() == StepTally(3, 0, 1, (FirstToken(0.0, 0.0),))


def test_a_prompt_that_is_not_computed_to_its_end_is_not_counted(engine, new_request) -> None:
    submit(engine, new_request, 1, prompt=range(40))
    assert engine.step() is None
    engine.loop.cancel(1)
    assert engine.loop.take_tally() is None


def test_tokens_found_in_the_cache_are_counted_as_such(engine, new_request) -> None:
    for request_id in (1, 2):
        submit(engine, new_request, request_id, prompt=range(9), max_new_tokens=1)
        told = engine.step()
    assert told is not None
    assert (told.prompt_tokens, told.cached_tokens, told.generation_tokens) == (9, 8, 1)


def test_the_gap_after_a_step_without_memory_goes_back_to_the_token_before_it(new_request) -> None:
    engine = Engine(fails_at=(2,))
    submit(engine, new_request, 1, max_new_tokens=9)
    engine.step()
    submit(engine, new_request, 2)
    assert engine.step(after_s=1.0) is None
    assert [(output.request_id, type(output.item)) for output in engine.outputs] == [(2, OutOfMemory)]
    assert engine.step(after_s=2.0) == StepTally(generation_tokens=1, gaps=((3.0, 1),))


def test_all_that_is_told_adds_up_to_what_the_answers_say(new_request) -> None:
    engine = Engine(slots=2)
    for request_id in range(5):
        submit(engine, new_request, request_id, prompt=range(request_id, request_id + 7), max_new_tokens=request_id + 1)
    tallies, finishes = [], []
    while not engine.loop.is_idle:
        tallies.append(engine.step(after_s=0.125) or StepTally())
        finishes += [output.item.finish for output in engine.outputs if isinstance(output.item, Chunk)]
    usages = [finish.usage for finish in finishes if finish is not None]
    assert len(usages) == 5
    assert sum(tally.prompt_tokens for tally in tallies) == sum(usage.prompt_tokens for usage in usages) == 35
    assert sum(tally.generation_tokens for tally in tallies) == sum(usage.completion_tokens for usage in usages) == 15
    firsts = [first for tally in tallies for first in tally.firsts]
    timings = [finish.timings for finish in finishes if finish is not None]
    assert sorted((first.queue_s, first.time_to_first_token_s) for first in firsts) == sorted(
        (times.queue_s, times.time_to_first_token_s) for times in timings
    )
    assert sum(times for tally in tallies for _, times in tally.gaps) == 15 - 5

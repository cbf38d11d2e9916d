"""The step loop on a runner that follows a script: no model."""

from collections.abc import Callable, Iterable
from itertools import count

import pytest
import torch
from tokenizers import Tokenizer

from inferapi.domain.errors import InferapiError, OutOfMemory, QueueFull
from inferapi.domain.generation import Chunk, FinishReason, Usage
from inferapi.domain.model import EngineLoad
from inferapi.engine.block_pool import BlockPool
from inferapi.engine.loop import EngineLoop, Output, is_out_of_memory
from inferapi.engine.request import Request
from inferapi.engine.scheduler import Plan, Scheduler

EOS = 256


class ScriptedRunner:
    """A ``Runner`` whose every request says the script's tokens, and whose passes fail where told."""

    def __init__(self, script: Iterable[int], failures: dict[int, Exception] | None = None) -> None:
        self._script = list(script)
        self._failures = failures or {}
        self._passes = count(1)
        self.released: list[int] = []

    def run(self, plan: Plan) -> torch.Tensor:
        if failure := self._failures.get(next(self._passes)):
            raise failure
        requests = [segment.request for segment in plan.segments if segment.samples]
        logits = torch.zeros(len(requests), EOS + 1)
        for row, request in enumerate(requests):
            logits[row, self._script[request.num_completion_tokens]] = 9.0
        return logits

    def release(self, request: Request) -> None:
        self.released.append(request.request_id)


@pytest.fixture
def engine(byte_tokenizer: Tokenizer) -> Callable[..., tuple[EngineLoop, ScriptedRunner]]:
    byte_tokenizer.add_special_tokens(["<|end|>"])

    def make(
        says: str = "hello world", *, end: bool = True, failures: dict[int, Exception] | None = None, slots: int = 4
    ) -> tuple[EngineLoop, ScriptedRunner]:
        runner = ScriptedRunner([*byte_tokenizer.encode(says).ids, *([EOS] if end else [])], failures)
        scheduler = Scheduler(
            max_slots=slots, max_waiting=2, step_tokens=8, idle_step_tokens=16, pool=BlockPool(100, 4)
        )
        ticks = count(1)
        loop = EngineLoop(
            scheduler,
            runner,
            decode=lambda ids: byte_tokenizer.decode(list(ids), skip_special_tokens=True),
            eos_token_ids=[EOS],
            now_s=lambda: float(next(ticks)),
        )
        return loop, runner

    return make


def drain(loop: EngineLoop) -> dict[int, list[Chunk | InferapiError]]:
    items: dict[int, list[Chunk | InferapiError]] = {}
    while not loop.is_idle:
        for output in loop.step():
            items.setdefault(output.request_id, []).append(output.item)
    return items


def text(items: list[Chunk | InferapiError]) -> str:
    return "".join(item.text for item in items if isinstance(item, Chunk))


def test_an_idle_loop_has_nothing_to_say(engine) -> None:
    loop, _ = engine()

    assert loop.step() == []
    assert loop.load == EngineLoad(0, 0, 0.0)


def test_an_answer_ends_at_the_end_token_and_is_counted(engine, new_request) -> None:
    loop, runner = engine("hi!")
    loop.submit(new_request(7))

    items = drain(loop)[7]

    assert [item.text for item in items] == ["h", "i", "!", ""]
    assert [item.finish is None for item in items] == [True, True, True, False]
    assert items[-1].finish.reason is FinishReason.STOP
    assert items[-1].finish.usage == Usage(prompt_tokens=3, completion_tokens=4)
    assert runner.released == [7]


def test_an_answer_ends_at_its_longest(engine, new_request) -> None:
    loop, _ = engine("hello")
    loop.submit(new_request(max_new_tokens=2))

    items = drain(loop)[0]

    assert [item.text for item in items] == ["h", "e"]
    assert items[-1].finish.reason is FinishReason.LENGTH
    assert items[-1].finish.usage.completion_tokens == 2


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(engine, new_request) -> None:
    loop, _ = engine("one two three")
    loop.submit(new_request(stop=("two",)))

    items = drain(loop)[0]

    assert text(items) == "one "
    assert items[-1].finish.reason is FinishReason.STOP
    assert items[-1].finish.usage.completion_tokens == 7


@pytest.mark.parametrize("max_new_tokens", [100, 6])
def test_text_held_back_for_a_stop_string_comes_with_the_end(engine, new_request, max_new_tokens: int) -> None:
    loop, _ = engine("one tw")
    loop.submit(new_request(stop=("two",), max_new_tokens=max_new_tokens))

    assert text(drain(loop)[0]) == "one tw"


def test_steps_that_only_hold_text_back_say_nothing(engine, new_request) -> None:
    loop, _ = engine("\N{GRINNING FACE}")
    loop.submit(new_request())

    assert [item.text for item in drain(loop)[0]] == ["\N{GRINNING FACE}", ""]


def test_an_end_token_is_not_text_when_ends_are_ignored(engine, new_request) -> None:
    loop, runner = engine("hi")
    runner._script += [*runner._script]
    loop.submit(new_request(ignore_eos=True, max_new_tokens=5))

    items = drain(loop)[0]

    assert text(items) == "hihi"
    assert items[-1].finish.reason is FinishReason.LENGTH


def test_an_answer_does_not_end_before_its_least_length(engine, new_request) -> None:
    loop, _ = engine("ab")
    request = new_request(min_new_tokens=3, max_new_tokens=3)
    loop.submit(request)

    drain(loop)

    assert request.num_completion_tokens == 3
    assert EOS not in request.tokens


def test_timings_are_read_from_the_clock(engine, new_request) -> None:
    loop, _ = engine("abc", end=False)
    request = new_request(max_new_tokens=3)
    request.arrived_s = -1.0
    loop.submit(request)

    timings = drain(loop)[0][-1].finish.timings

    # The clock ticks twice a step: when it is planned, and when its tokens are there.
    assert timings.queue_s == 2.0
    assert timings.time_to_first_token_s == 3.0
    assert timings.inter_token_latency_s == 2.0
    assert timings.total_s == 7.0


def test_a_cancelled_request_says_no_more_and_the_others_go_on(engine, new_request) -> None:
    loop, runner = engine("hello", slots=2)
    for n in range(3):
        loop.submit(new_request(n))
    loop.step()
    before = loop.load

    loop.cancel(0)  # runs
    loop.cancel(2)  # waits
    loop.cancel(99)  # was never there
    loop.cancel(0)  # is gone already

    assert (before.running, before.waiting) == (2, 1)
    assert (loop.load.running, loop.load.waiting) == (1, 0)
    items = drain(loop)
    assert items.keys() == {1}
    assert text(items[1]) == "ello"  # the first letter came before
    assert runner.released == [0, 2, 1]
    assert loop.load == EngineLoad(0, 0, 0.0)


def test_a_refused_request_leaves_nothing_behind(engine, new_request) -> None:
    loop, _ = engine("hi", slots=1)
    for n in range(3):
        loop.submit(new_request(n))

    with pytest.raises(QueueFull):
        loop.submit(new_request(3))
    loop.cancel(3)

    assert drain(loop).keys() == {0, 1, 2}


def test_out_of_memory_ends_the_prompts_of_the_step_and_not_who_decodes(engine, new_request) -> None:
    loop, runner = engine("hello", failures={3: torch.OutOfMemoryError("no")})
    loop.submit(new_request(0))
    first = [*loop.step(), *loop.step()]
    loop.submit(new_request(1))
    loop.submit(new_request(2))

    failed = loop.step()

    assert [output.request_id for output in failed] == [1, 2]
    assert all(isinstance(output.item, OutOfMemory) for output in failed)
    assert runner.released == [1, 2]
    assert loop.load.running == 1
    assert text([output.item for output in first] + drain(loop)[0]) == "hello"


def test_out_of_memory_while_all_decode_ends_them_and_the_engine_goes_on(engine, new_request) -> None:
    loop, _ = engine("hello", failures={2: MemoryError()})
    loop.submit(new_request(0))
    loop.submit(new_request(1))
    loop.step()

    failed = loop.step()

    assert [(output.request_id, type(output.item)) for output in failed] == [(0, OutOfMemory), (1, OutOfMemory)]
    assert loop.load == EngineLoad(0, 0, 0.0)
    loop.submit(new_request(2))
    assert text(drain(loop)[2]) == "hello"


def test_an_error_that_is_not_for_want_of_memory_is_not_hidden(engine, new_request) -> None:
    loop, _ = engine(failures={1: RuntimeError("shapes differ")})
    loop.submit(new_request())

    with pytest.raises(RuntimeError, match="shapes differ"):
        loop.step()


def test_want_of_memory_is_known_on_every_device() -> None:
    cpu = RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried")

    assert [is_out_of_memory(error) for error in (torch.OutOfMemoryError(), MemoryError(), cpu)] == [True] * 3
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_torch_says_so_itself_when_the_processor_has_no_memory() -> None:
    with pytest.raises(RuntimeError) as refusal:
        torch.empty(2**60)

    assert is_out_of_memory(refusal.value)


def test_outputs_name_the_request_they_are_for(engine, new_request) -> None:
    loop, _ = engine("ab")
    loop.submit(new_request(5))
    loop.submit(new_request(6))

    assert loop.step() == [Output(5, Chunk("a", completion_tokens=1)), Output(6, Chunk("a", completion_tokens=1))]

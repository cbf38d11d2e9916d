"""The step loop where requests ask for log-probabilities, or for an answer that looks so and so."""

import math
from collections.abc import Callable, Iterable
from itertools import count

import pytest
import torch
from tokenizers import Tokenizer

from inferapi.domain.errors import InferapiError, InvalidRequest, OutOfMemory
from inferapi.domain.generation import Chunk, Constraint, ConstraintKind, FinishReason
from inferapi.engine.block_pool import BlockPool
from inferapi.engine.constraints import Constrainer
from inferapi.engine.loop import EngineLoop
from inferapi.engine.request import Request
from inferapi.engine.scheduler import Plan, Scheduler

END = 256
FACE = "\N{GRINNING FACE}"
LIKELY = 9.0
ITS_LOGPROB = -math.log1p(END * math.exp(-LIKELY))  # one token has 9, the other 256 have 0

Items = list[Chunk | InferapiError]


class ScriptedRunner:
    """A ``Runner`` whose every request would say the script's tokens, and whose passes fail where told."""

    def __init__(self, script: Iterable[int], others: float, failures: dict[int, Exception]) -> None:
        self._script = list(script)
        self._others = others
        self._failures = failures
        self._passes = count(1)

    def run(self, plan: Plan) -> torch.Tensor:
        if failure := self._failures.get(next(self._passes)):
            raise failure
        requests = [segment.request for segment in plan.segments if segment.samples]
        logits = torch.full((len(requests), END + 1), self._others)
        for row, request in enumerate(requests):
            logits[row, self._script[min(request.num_completion_tokens, len(self._script) - 1)]] = LIKELY
        return logits

    def release(self, request: Request) -> None:
        pass


@pytest.fixture
def engine(byte_tokenizer: Tokenizer) -> Callable[..., EngineLoop]:
    """An engine that says a text, then its end."""
    byte_tokenizer.add_special_tokens(["<|end|>"])

    def make(says: str, *, others: float = 0.0, failures: dict[int, Exception] | None = None) -> EngineLoop:
        return EngineLoop(
            Scheduler(max_slots=4, max_waiting=2, step_tokens=8, idle_step_tokens=16, pool=BlockPool(100, 4)),
            ScriptedRunner([*byte_tokenizer.encode(says).ids, END], others, failures or {}),
            decode=lambda ids: byte_tokenizer.decode(list(ids), skip_special_tokens=True),
            eos_token_ids=[END],
            bytes_of=lambda token: byte_tokenizer.decode([token]).encode("latin-1", errors="replace"),
            vocabulary_tokens=END + 1,
            now_s=lambda: 1.0,
        )

    return make


@pytest.fixture
def constrained(constrainer: Constrainer, new_request) -> Callable[..., Request]:
    """A request whose answer keeps to a grammar."""

    def make(grammar: str, request_id: int = 0, **sampling: object) -> Request:
        request = new_request(request_id, **sampling)
        request.matcher = constrainer.matcher(Constraint(ConstraintKind.GRAMMAR, grammar))
        return request

    return make


def drain(loop: EngineLoop, *requests: Request) -> dict[int, Items]:
    for request in requests:
        loop.submit(request)
    items: dict[int, Items] = {}
    while not loop.is_idle:
        for output in loop.step():
            items.setdefault(output.request_id, []).append(output.item)
    return items


def text(items: Items) -> str:
    return "".join(item.text for item in items if isinstance(item, Chunk))


def told(items: Items) -> list[str]:
    """The text of the tokens on each chunk."""
    return ["".join(token.chance.text for token in item.tokens) for item in items if isinstance(item, Chunk)]


def test_a_stop_string_cuts_no_answer_that_must_keep_to_something(engine, constrained) -> None:
    kept = constrained('start: "a.b" /[c.]*/', stop=(".",))
    items = drain(engine("a.bc.c"), kept)[0]

    assert text(items) == "a.bc"
    assert items[-1].finish.reason is FinishReason.STOP


def test_each_token_is_told_with_its_text(engine, new_request) -> None:
    items = drain(engine("hi!"), new_request(top_logprobs=2))[0]

    assert [item.text for item in items] == told(items) == ["h", "i", "!", ""]
    token = items[0].tokens[0]
    assert (token.chance.text, token.chance.data) == ("h", b"h")
    assert token.chance.logprob == pytest.approx(ITS_LOGPROB, abs=1e-6)
    assert [chance.token_id for chance in token.likeliest] == [token.chance.token_id, 0]
    assert token.likeliest[0] == token.chance
    assert token.likeliest[1].logprob == pytest.approx(ITS_LOGPROB - LIKELY, abs=1e-6)


def test_without_likeliest_tokens_the_chosen_ones_are_told_alone(engine, new_request) -> None:
    items = drain(engine("hi"), new_request(top_logprobs=0))[0]

    assert told(items) == ["h", "i", ""]
    assert [token.likeliest for item in items for token in item.tokens] == [(), ()]


def test_nobody_is_told_who_did_not_ask(engine, new_request) -> None:
    items = drain(engine("hi"), new_request(0), new_request(1, top_logprobs=1))

    assert text(items[0]) == text(items[1]) == "hi"
    assert told(items[0]) == ["", "", ""]
    assert told(items[1]) == ["h", "i", ""]


def test_the_tokens_of_one_character_come_together(engine, new_request, byte_tokenizer) -> None:
    items = drain(engine(f"a{FACE}b"), new_request(top_logprobs=0))[0]

    assert [item.text for item in items] == ["a", FACE, "b", ""]
    assert [[token.chance.token_id for token in item.tokens] for item in items] == [
        byte_tokenizer.encode(part).ids for part in ("a", FACE, "b", "")
    ]


def test_tokens_that_a_stop_string_cuts_off_are_not_told(engine, new_request) -> None:
    items = drain(engine("one two three"), new_request(stop=("two",), top_logprobs=0))[0]

    assert text(items) == "".join(told(items)) == "one "
    assert items[-1].finish.usage.completion_tokens == 7


@pytest.mark.parametrize("max_new_tokens", [100, 6])
def test_tokens_held_back_for_a_stop_string_come_with_the_end(engine, new_request, max_new_tokens: int) -> None:
    items = drain(engine("one tw"), new_request(stop=("two",), max_new_tokens=max_new_tokens, top_logprobs=0))[0]

    assert text(items) == "".join(told(items)) == "one tw"
    assert told(items)[-1] == "tw"


def test_a_character_cut_short_by_the_longest_length_is_told_too(engine, new_request) -> None:
    items = drain(engine(f"a{FACE}"), new_request(max_new_tokens=3, top_logprobs=0))[0]

    assert [len(item.tokens) for item in items] == [1, 2]


def test_an_end_that_is_ignored_is_a_token_like_any_other(engine, new_request) -> None:
    items = drain(engine("a"), new_request(ignore_eos=True, max_new_tokens=3, top_logprobs=0))[0]

    assert [token.chance.token_id for item in items for token in item.tokens][1:] == [END, END]


def test_an_answer_ends_where_its_constraint_is_complete(engine, constrained) -> None:
    request = constrained('start: "yes" | "no"')

    items = drain(engine("Yes, it is."), request)[0]

    assert text(items) == "no"  # of equally likely letters the first
    assert items[-1].finish.reason is FinishReason.STOP
    assert items[-1].finish.usage.completion_tokens == 2
    assert END not in request.tokens


@pytest.mark.parametrize("sampling", [{}, {"ignore_eos": True}, {"min_new_tokens": 3}])
def test_an_answer_that_may_end_ends_with_the_end_token(engine, constrained, sampling: dict) -> None:
    items = drain(engine("yyy"), constrained("start: /y{1,50}/", **sampling))[0]

    assert text(items) == "yyy"
    assert items[-1].finish.reason is FinishReason.STOP
    assert items[-1].finish.usage.completion_tokens == 4


def test_a_complete_answer_ends_whatever_its_least_length(engine, constrained) -> None:
    items = drain(engine("anything"), constrained('start: "ok"', min_new_tokens=50, ignore_eos=True))[0]

    assert text(items) == "ok"
    assert items[-1].finish.reason is FinishReason.STOP


def test_a_constrained_answer_may_be_too_long(engine, constrained) -> None:
    items = drain(engine("anything"), constrained('start: "longer"', max_new_tokens=4))[0]

    assert text(items) == "long"
    assert items[-1].finish.reason is FinishReason.LENGTH


def test_text_held_back_for_a_stop_string_comes_with_a_complete_answer(engine, constrained) -> None:
    items = drain(engine("."), constrained('start: "a tw"', stop=("two",), top_logprobs=0))[0]

    assert text(items) == "".join(told(items)) == "a tw"


def test_a_constraint_that_no_token_keeps_fails_its_request_alone(engine, constrained, new_request) -> None:
    loop = engine("hello", others=float("-inf"))

    items = drain(loop, constrained('start: "zzz"', 0), new_request(1))

    assert [type(item) for item in items[0]] == [InvalidRequest]
    assert text(items[1]) == "hello"
    assert loop.load.running == 0


def test_a_step_that_found_no_memory_leaves_a_constraint_where_it_was(engine, constrained, new_request) -> None:
    loop = engine("anything", failures={3: MemoryError()})
    request = constrained('start: "abcdef"', 0)
    loop.submit(request)
    first = [*loop.step(), *loop.step()]
    loop.submit(new_request(1))

    failed = loop.step()

    assert [(output.request_id, type(output.item)) for output in failed] == [(1, OutOfMemory)]
    assert text([output.item for output in first] + drain(loop)[0]) == "abcdef"


def test_a_cancelled_answer_leaves_the_others_constraints_alone(engine, constrained) -> None:
    loop = engine("anything")
    requests = [constrained('start: "abc"', 0), constrained('start: "xyz"', 1)]
    for request in requests:
        loop.submit(request)
    loop.step()
    loop.cancel(0)

    assert text(drain(loop)[1]) == "yz"


@pytest.mark.parametrize("token", [END + 1, -1, 10**9])
def test_a_bias_for_a_token_that_the_model_does_not_know_is_refused(engine, new_request, token: int) -> None:
    loop = engine("hi")

    with pytest.raises(InvalidRequest, match=f"logit_bias: there is no token {token}; the last one is 256"):
        loop.submit(new_request(logit_bias=((3, 1.0), (token, 1.0))))

    assert loop.is_idle
    assert text(drain(loop, new_request(1, logit_bias=((END, -100.0),), max_new_tokens=2))[1]) == "hi"

"""A constrained row is chosen from what its constraint allows; nobody else's row is."""

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer

from inferapi.domain.errors import InvalidRequest
from inferapi.domain.generation import Constraint, ConstraintKind
from inferapi.engine.constraints import Constrainer
from inferapi.engine.request import Request
from inferapi.engine.sampler import Sampler

END = 256
VOCABULARY = 5000  # wider than the tokenizer, as many a model's

Constrained = Callable[..., Request]


@pytest.fixture
def constrained(constrainer: Constrainer, new_request) -> Constrained:
    """A request whose answer keeps to a grammar."""

    def make(grammar: str, request_id: int = 0, **sampling: object) -> Request:
        request = new_request(request_id, **sampling)
        request.matcher = constrainer.matcher(Constraint(ConstraintKind.GRAMMAR, grammar))
        return request

    return make


@pytest.fixture
def letter(byte_tokenizer: Tokenizer) -> Callable[[str], int]:
    return lambda text: byte_tokenizer.encode(text).ids[0]


def random_logits(rows: int, seed: int = 0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def answers(sampler: Sampler, requests: list[Request], steps: int) -> list[list[int]]:
    """What each request says in so many steps, its constraint kept up with."""
    for step in range(steps):
        tokens = sampler.sample(random_logits(len(requests), step), requests).tokens
        for request, token in zip(requests, tokens, strict=True):
            request.tokens.append(token)
            if request.matcher is not None:
                request.matcher.take(token, is_end=token == END)
    return [request.tokens[request.num_prompt_tokens :] for request in requests]


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_k": 50},
        {"temperature": 5.0, "top_p": 0.99},
        {"temperature": 1.0, "min_p": 0.01, "repetition_penalty": 1.3, "presence_penalty": 2.0},
    ],
)
def test_whatever_is_sampled_keeps_to_the_constraint(constrained: Constrained, letter, sampling: dict) -> None:
    request = constrained("start: /[ab]{40}/", **sampling, seed=1)

    (answer,) = answers(Sampler([END]), [request], 40)

    assert set(answer) == {letter("a"), letter("b")}
    assert request.matcher.is_complete


def test_a_row_of_the_batch_is_constrained_alone(constrained: Constrained, new_request) -> None:
    def batch() -> list[Request]:
        free = [{"temperature": 0.0}, {"temperature": 1.0}, {"top_k": 9, "temperature": 1.0}]
        kept = [new_request(n, seed=n, **sampling) for n, sampling in enumerate(free)]
        return [kept[0], constrained("start: /[a-z]+/", 3, seed=3, temperature=1.0), kept[1], kept[2]]

    together, logits = batch(), random_logits(4)

    tokens = Sampler([END]).sample(logits, together).tokens

    alone = [Sampler([END]).sample(logits[[row]], [request]).tokens[0] for row, request in enumerate(batch())]
    assert tokens == alone
    assert tokens[0] == int(logits[0].argmax())
    together[1].matcher.take(tokens[1], is_end=tokens[1] == END)


def test_answers_of_different_constraints_advance_side_by_side(constrained: Constrained, byte_tokenizer) -> None:
    words = ["yes", "noo", "ohh"]
    requests = [constrained(f'start: "{word}"', n, temperature=float(n)) for n, word in enumerate(words)]

    said = answers(Sampler([END]), requests, 3)

    assert [byte_tokenizer.decode(answer) for answer in said] == words


def test_no_bias_brings_back_what_is_not_allowed(constrained: Constrained, letter) -> None:
    request = constrained('start: "a" | "b"', logit_bias=((letter("c"), 100.0), (letter("b"), 50.0), (4000, 100.0)))

    assert Sampler([END]).sample(random_logits(1), [request]).tokens == [letter("b")]


def test_an_answer_that_may_end_goes_on_to_its_least_length(constrained: Constrained, letter) -> None:
    request = constrained("start: /a{1,9}/", min_new_tokens=3, logit_bias=((END, 90.0),))

    (answer,) = answers(Sampler([END]), [request], 4)

    assert answer == [letter("a")] * 3 + [END]


def test_a_constraint_that_leaves_the_end_alone_overrules_the_least_length(constrained: Constrained, letter) -> None:
    request = constrained('start: "a"', min_new_tokens=9)
    request.matcher.take(letter("a"), is_end=False)

    assert Sampler([END]).sample(random_logits(1), [request]).tokens == [END]


def test_log_probabilities_are_of_what_is_allowed(constrained: Constrained, letter) -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, letter("b")] = 1.0
    request = constrained('start: "a" | "b"', top_logprobs=20)

    chances = Sampler([END]).sample(logits, [request]).chances[0]

    assert [token for token, _ in chances.likeliest] == [letter("b"), letter("a")]
    assert chances.logprob == pytest.approx(-0.3133, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_any_token_left_fails_its_request_and_not_the_step(
    constrained: Constrained, new_request, temperature: float
) -> None:
    logits = random_logits(2)
    logits[0] = float("-inf")
    requests = [constrained('start: "zzz"', temperature=temperature), new_request(1)]

    tokens = Sampler([END]).sample(logits, requests).tokens

    assert tokens[1] == int(logits[1].argmax())
    with pytest.raises(InvalidRequest):
        requests[0].matcher.take(tokens[0], is_end=tokens[0] == END)


def test_a_vocabulary_narrower_than_the_tokenizer_is_no_trouble(constrained: Constrained, letter) -> None:
    width = letter("a") + 1
    request = constrained('start: "a" | "b"')

    assert Sampler([]).sample(random_logits(1, vocabulary=width), [request]).tokens == [letter("a")]

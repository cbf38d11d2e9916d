"""Penalties, biases and log-probabilities: what they do to a row, and that they do nothing to another."""

import math

import pytest
import torch

from inferapi.engine.request import Request
from inferapi.engine.sampler import Sampled, Sampler

VOCABULARY = 300


def random_logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def sample(logits: torch.Tensor, requests: list[Request]) -> Sampled:
    return Sampler([2]).sample(logits.clone(), requests)


def test_presence_counts_once_and_the_prompt_not_at_all(new_request) -> None:
    logits = torch.tensor([[0.0, 5.0, 4.0, 4.5]])
    request = new_request(prompt=[3, 3, 3], presence_penalty=1.0)

    before = sample(logits, [request]).tokens
    request.tokens += [1, 1, 1]

    assert before == [1]
    assert sample(logits, [request]).tokens == [3]  # 5 - 1 is less than 4.5


def test_frequency_counts_every_time(new_request) -> None:
    logits = torch.tensor([[0.0, 5.0, 4.0, 3.0]])
    request = new_request(prompt=[1], frequency_penalty=0.4)
    chosen = []
    for _ in range(6):
        chosen += sample(logits, [request]).tokens
        request.tokens.append(chosen[-1])

    # 5, 4.6, 4.2, then 3.8 is less than 4, which becomes 3.6, then 3.8 again, 3.4
    assert chosen == [1, 1, 1, 2, 1, 2]


def test_both_penalties_are_those_of_the_formula(new_request) -> None:
    logits = random_logits(2)
    request, other = (new_request(n, prompt=[9], top_logprobs=0) for n in range(2))
    penalized = new_request(
        2, prompt=[9], top_logprobs=0, presence_penalty=0.7, frequency_penalty=-0.3, temperature=0.0
    )
    for each in (request, other, penalized):
        each.tokens += [40, 41, 40]
    expected = logits[1].clone()
    expected[40] += 0.3 * 2 - 0.7
    expected[41] += 0.3 - 0.7

    found = sample(logits, [request, penalized])

    assert found.tokens[1] == int(expected.argmax())
    assert found.chances[1].logprob == pytest.approx(float(expected.log_softmax(-1).max()), abs=1e-5)
    assert found.chances[0] == sample(logits[:1], [other]).chances[0]


def test_a_bias_is_added_before_anything_else(new_request) -> None:
    logits = torch.tensor([[1.0, 2.0, -1.0, 0.0]])

    def chosen(**sampling: object) -> int:
        return sample(logits, [new_request(prompt=[3], **sampling)]).tokens[0]

    assert chosen() == 1
    assert chosen(logit_bias=((1, -100.0),)) == 0
    assert chosen(logit_bias=((3, 2.5),)) == 3
    assert chosen(logit_bias=((3, 2.5),), repetition_penalty=1.5) == 1  # 2.5 / 1.5, and not 0 / 1.5 + 2.5


def test_a_bias_for_tokens_that_the_model_does_not_have_changes_no_other_row(new_request) -> None:
    logits = torch.zeros(2, VOCABULARY)
    biased = new_request(0, logit_bias=((10**6, 100.0), (-1, 100.0), (512, 100.0), (VOCABULARY + 7, 100.0)))
    other = new_request(1, logit_bias=((9, 1.0),))

    assert sample(logits, [biased, other]).tokens == [0, 9]


def test_ends_are_forbidden_after_all_that_could_bring_them_back(new_request) -> None:
    logits = torch.tensor([[1.0, 2.0, 9.0, 0.0]])

    assert sample(logits, [new_request(logit_bias=((2, 100.0),), min_new_tokens=1)]).tokens == [1]


def test_log_probabilities_are_told_to_those_who_ask(new_request) -> None:
    logits = random_logits(4)
    requests = [new_request(n, top_logprobs=number) for n, number in enumerate((None, 0, 3, None))]

    found = sample(logits, requests)

    assert found.tokens == logits.argmax(-1).tolist()
    assert found.chances.keys() == {1, 2}
    expected = logits.log_softmax(-1)
    assert found.chances[1].logprob == pytest.approx(float(expected[1].max()), abs=1e-5)
    assert found.chances[1].likeliest == ()
    assert [token for token, _ in found.chances[2].likeliest] == expected[2].topk(3).indices.tolist()


@pytest.mark.parametrize("sampling", [{"temperature": 0.5}, {"temperature": 2.0, "top_k": 2}, {"top_p": 0.1}])
def test_log_probabilities_are_of_temperature_one_and_of_all_tokens(new_request, sampling: dict) -> None:
    logits = random_logits(1)
    request = new_request(**{"temperature": 1.0, "seed": 3, "top_logprobs": 20, **sampling})

    found = sample(logits, [request])

    expected = logits[0].log_softmax(-1)
    chance = found.chances[0]
    assert chance.logprob == pytest.approx(float(expected[found.tokens[0]]), abs=1e-5)
    assert [value for _, value in chance.likeliest] == pytest.approx(expected.topk(20).values.tolist(), abs=1e-5)


def test_a_token_is_the_same_whether_its_chances_are_told_or_not(new_request) -> None:
    logits = random_logits(8)
    asked = {"temperature": 1.0, "top_p": 0.9, "top_logprobs": 5}

    told = sample(logits, [new_request(n, seed=n, **asked) for n in range(8)])
    silent = sample(logits, [new_request(n, seed=n, **asked | {"top_logprobs": None}) for n in range(8)])

    assert told.tokens == silent.tokens
    assert not silent.chances


def test_impossible_tokens_are_not_among_the_likeliest(new_request) -> None:
    logits = torch.tensor([[1.0, 1.0, 9.0, float("-inf")]])

    chances = sample(logits, [new_request(min_new_tokens=1, top_logprobs=4)]).chances[0]

    assert [token for token, _ in chances.likeliest] == [0, 1]
    assert chances.logprob == pytest.approx(-math.log(2))

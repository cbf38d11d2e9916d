from collections.abc import Callable, Sequence

import pytest
import torch

from inferapi.engine.request import Request
from inferapi.engine.sampler import Sampler

VOCABULARY = 300


class ScriptedRandom:
    """Draws what it was given."""

    def __init__(self, *draws: float) -> None:
        self._draws = iter(draws)

    def random(self) -> float:
        return next(self._draws)


@pytest.fixture
def drawing(new_request) -> Callable[..., Request]:
    """A request whose uniform numbers are given."""

    def make(*draws: float, **sampling: object) -> Request:
        request = new_request(**{"temperature": 1.0, **sampling})
        request.random = ScriptedRandom(*draws)
        return request

    return make


def random_logits(rows: int, vocabulary: int = VOCABULARY, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def sample(logits: torch.Tensor, requests: Sequence[Request], eos: Sequence[int] = ()) -> list[int]:
    return Sampler(eos).sample(logits.clone(), requests).tokens


def test_temperature_zero_takes_the_likeliest(new_request) -> None:
    logits = random_logits(4)

    assert sample(logits, [new_request(temperature=0.0, top_k=7) for _ in range(4)]) == logits.argmax(-1).tolist()


def test_a_penalty_can_change_the_greedy_choice(new_request) -> None:
    logits = torch.tensor([[1.0, 5.0, 4.9, -1.0]])

    assert sample(logits, [new_request(prompt=[1])]) == [1]
    assert sample(logits, [new_request(prompt=[1], repetition_penalty=1.1)]) == [2]


def test_a_penalty_makes_negative_logits_less_likely_too(new_request) -> None:
    logits = torch.tensor([[-1.0, -1.05, -9.0]])

    assert sample(logits, [new_request(prompt=[0, 0, 0], repetition_penalty=1.2)]) == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_a_runner_made_in_inference_mode_can_be_changed(new_request, dtype: torch.dtype) -> None:
    with torch.inference_mode():
        logits = torch.tensor([[1.0, 5.0, 4.0, 3.0]]).to(dtype)[:1]
    request = new_request(prompt=[1], repetition_penalty=2.0, min_new_tokens=1)

    assert Sampler([2]).sample(logits, [request]).tokens == [3]


def test_ends_are_impossible_until_the_answer_is_long_enough(new_request) -> None:
    logits = torch.tensor([[0.0, 9.0, 8.0, 1.0]])
    request = new_request(prompt=[0], min_new_tokens=2)
    chosen = []
    for _ in range(3):
        (token,) = sample(logits, [request], eos=[1, 2])
        request.tokens.append(token)
        chosen.append(token)

    assert chosen == [3, 3, 1]


def test_top_k_one_is_greedy_whatever_is_drawn(drawing) -> None:
    logits = random_logits(3)
    requests = [drawing(draw, top_k=1) for draw in (0.0, 0.5, 0.9999999999)]

    assert sample(logits, requests) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("sampling", [{}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.2}])
@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
def test_the_smallest_and_the_largest_draw_name_a_possible_token(drawing, sampling: dict, draw: float) -> None:
    logits = torch.full((1, VOCABULARY), float("-inf"))
    logits[0, [40, 41, 42]] = torch.tensor([1.0, 2.0, 3.0])

    assert sample(logits, [drawing(draw, **sampling)])[0] in {40, 41, 42}


@pytest.mark.parametrize("filters", [{}, {"top_k": 5}, {"top_p": 0.9}])
@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-6])
def test_a_temperature_of_almost_nothing_is_greedy(drawing, filters: dict, temperature: float) -> None:
    logits = random_logits(1)

    assert sample(logits, [drawing(0.9, temperature=temperature, **filters)]) == logits.argmax(-1).tolist()


@pytest.mark.parametrize("filters", [{}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}, {"temperature": 0.0}])
@pytest.mark.parametrize("broken", [float("nan"), float("inf"), float("-inf")])
def test_broken_logits_still_give_a_token_of_the_vocabulary(drawing, filters: dict, broken: float) -> None:
    logits = torch.full((1, VOCABULARY), broken)

    assert 0 <= sample(logits, [drawing(0.9, **filters)])[0] < VOCABULARY


def test_a_tiny_top_p_keeps_the_likeliest(drawing) -> None:
    logits = random_logits(1)

    assert sample(logits, [drawing(0.999, top_p=1e-6)]) == logits.argmax(-1).tolist()


MIXED = (
    {"temperature": 0.0},
    {"temperature": 0.7},
    {"temperature": 1.5, "top_k": 10},
    {"top_p": 0.8, "repetition_penalty": 1.3},
    {"min_p": 0.1, "top_k": 40, "top_p": 0.95},
    {"temperature": 30.0, "top_p": 0.999},
    {"temperature": 5.0, "top_k": 700},
)


def mixed_requests(new_request, seed: int) -> list[Request]:
    return [new_request(number, seed=seed + number, **sampling) for number, sampling in enumerate(MIXED)]


@pytest.mark.parametrize("seed", range(5))
def test_a_token_is_the_same_alone_and_in_a_batch(new_request, seed: int) -> None:
    logits = random_logits(len(MIXED), 2000, seed)

    together = sample(logits, mixed_requests(new_request, seed))
    alone = [sample(logits[[row]], [r])[0] for row, r in enumerate(mixed_requests(new_request, seed))]

    assert together == alone


def test_tokens_of_equal_likelihood_do_not_change_places_in_a_batch(new_request) -> None:
    alone, together = [], []
    for seed in range(10):
        logits = random_logits(2, 2000, seed).round()  # many ties, as bfloat16 makes them
        one, same, other = (new_request(seed=seed, temperature=1.0, top_k=k) for k in (100, 100, 1500))
        alone += sample(logits[:1], [one])
        together += sample(logits, [same, other])[:1]

    assert together == alone


def test_a_seed_repeats_its_tokens_and_no_seed_does_not(new_request) -> None:
    logits = random_logits(1)

    def answer(seed: int | None) -> list[int]:
        request = new_request(temperature=3.0, seed=seed)
        return [sample(logits, [request])[0] for _ in range(20)]

    assert answer(11) == answer(11)
    assert answer(11) != answer(12)
    assert answer(None) != answer(None)  # 20 tokens of 300 do not meet by chance


def test_a_request_draws_one_number_a_token_whatever_its_filters(drawing) -> None:
    logits = random_logits(1, 5000) * 0.01
    for sampling in ({}, {"top_p": 0.999}, {"top_k": 3}):
        request = drawing(0.25, 0.75, **sampling)
        sample(logits, [request])

        assert request.random.random() == 0.75

"""The distribution is the one of transformers' own processors: swept through, not drawn at random."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from inferapi.domain.generation import SamplingParams
from inferapi.engine.request import Request
from inferapi.engine.sampler import Sampler

EOS = (3, 17)
PROMPT = (5, 5, 9, 20)
ANSWER = (9, 30)
DRAWS = 1000


class OneDraw:
    def __init__(self, draw: float) -> None:
        self.draw = draw

    def random(self) -> float:
        return self.draw


def expected(logits: torch.Tensor, sampling: SamplingParams) -> torch.Tensor:
    """The probabilities ``[V]`` that transformers' generate would draw from."""
    chain = LogitsProcessorList([])
    if sampling.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.min_new_tokens:
        chain.append(MinNewTokensLengthLogitsProcessor(len(PROMPT), sampling.min_new_tokens, list(EOS)))
    chain.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        chain.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        chain.append(MinPLogitsWarper(sampling.min_p))
    return chain(torch.tensor([[*PROMPT, *ANSWER]]), logits.clone()[None])[0].softmax(-1)


def swept(logits: torch.Tensor, sampling: SamplingParams, draws: int = DRAWS) -> torch.Tensor:
    """How often each token is chosen ``[V]`` when the uniform number passes over 0 to 1 evenly."""
    requests = []
    for number in range(draws):
        request = Request(number, [*PROMPT, *ANSWER], len(PROMPT), sampling, 0.0)
        request.random = OneDraw((number + 0.5) / draws)
        requests.append(request)
    tokens = Sampler(EOS).sample(logits.expand(draws, -1).clone(), requests).tokens
    return torch.bincount(torch.tensor(tokens), minlength=logits.shape[0]) / draws


def assert_same(logits: torch.Tensor, sampling: SamplingParams) -> None:
    probabilities, frequencies = expected(logits, sampling), swept(logits, sampling)
    assert not frequencies[probabilities == 0].any()  # nothing that transformers excludes
    assert frequencies[probabilities > 1.1 / DRAWS].all()  # everything that it reaches
    assert (frequencies - probabilities).abs().max() <= 1.1 / DRAWS


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.3},
        {"temperature": 2.5},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 1000},
        {"top_p": 0.5},
        {"top_p": 0.95},
        {"min_p": 0.05},
        {"min_p": 1.0},
        {"repetition_penalty": 1.8},
        {"repetition_penalty": 0.6},
        {"min_new_tokens": 3},
        {"min_new_tokens": 2},  # two are there already
        {"top_k": 20, "top_p": 0.8},  # the second counts in what the first left
        {"top_k": 20, "min_p": 0.1, "temperature": 1.7},
        {"top_k": 30, "top_p": 0.9, "min_p": 0.02, "temperature": 1.3, "repetition_penalty": 1.2, "min_new_tokens": 5},
    ],
)
def test_the_distribution_is_that_of_transformers(params: dict) -> None:
    logits = torch.randn(64, generator=torch.Generator().manual_seed(1)) * 2
    logits[list(EOS)] += 3  # so that their exclusion shows

    assert_same(logits, SamplingParams(**{"temperature": 1.0, "repetition_penalty": 1.0, **params}))


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.2, 3.0),
    top_k=st.integers(0, 80),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0.0, 0.5),
    repetition_penalty=st.floats(0.5, 2.0),
    min_new_tokens=st.integers(0, 4),
)
def test_any_combination_of_filters_is_that_of_transformers(seed: int, **params: float) -> None:
    logits = torch.randn(64, generator=torch.Generator().manual_seed(seed)) * 2

    assert_same(logits, SamplingParams(**params))


@pytest.mark.parametrize(
    ("params", "least"),
    [
        ({"top_p": 0.999}, 4900),
        ({"top_k": 2500}, 2400),
        ({"top_k": 3000, "top_p": 0.9}, 2500),
        ({"min_p": 0.97}, 1000),
        ({"temperature": 50.0, "top_p": 0.5, "min_p": 0.01}, 2000),
    ],
)
def test_filters_reach_past_the_first_candidates_of_a_flat_distribution(params: dict, least: int) -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(2)) * 0.01
    sampling = SamplingParams(**{"temperature": 1.0, "repetition_penalty": 1.0, **params})
    probabilities = expected(logits, sampling)
    assert int((probabilities > 0).sum()) > least  # far more than any shortcut looks at

    frequencies = swept(logits, sampling, draws=400)

    assert not frequencies[probabilities == 0].any()
    by_rank = logits.argsort(descending=True)
    for share in torch.stack([probabilities, frequencies])[:, by_rank].cumsum(1)[:, 250::250].T:
        assert share[0].item() == pytest.approx(share[1].item(), abs=2 / 400)

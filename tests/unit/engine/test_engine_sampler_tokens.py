"""Tokens are those of the plain formulas, computed row by row in float64, whatever shortcuts the sampler takes."""

import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inferapi.domain.generation import SamplingParams
from inferapi.engine.request import Request
from inferapi.engine.sampler import Sampler, likeliest

EOS = (2, 5)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class OneDraw:
    def __init__(self, draw: float) -> None:
        self.draw = draw

    def random(self) -> float:
        return self.draw


def adjusted(logits: torch.Tensor, request: Request) -> torch.Tensor:
    """A row ``[V]`` in float32 after biases, penalties and the least length, one token after the other."""
    row, sampling = logits.float().clone(), request.sampling
    for token, bias in sampling.logit_bias:
        row[token] += bias
    for token in set(request.tokens):
        score = row[token]
        factor = torch.tensor(sampling.repetition_penalty)
        row[token] = score * factor if score < 0 else score / factor
    for token, count in Counter(request.tokens[request.num_prompt_tokens :]).items():
        row[token] -= torch.tensor(float(count)) * sampling.frequency_penalty + sampling.presence_penalty
    if request.num_completion_tokens < sampling.min_new_tokens:
        row[list(EOS)] = float("-inf")
    return row


def kept(row: torch.Tensor, sampling: SamplingParams) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids that the filters keep, in the order in which they are drawn from, and their probabilities."""
    scaled = (row / torch.tensor(sampling.temperature)).double()
    ids = torch.arange(len(row))
    if sampling.top_k or sampling.top_p < 1 or sampling.min_p:
        scaled, ids = scaled.sort(descending=True, stable=True)
    if sampling.top_k:
        scaled, ids = scaled[: sampling.top_k], ids[: sampling.top_k]
    probabilities = scaled.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    is_kept = ((before < sampling.top_p) | (sampling.top_p >= 1)) & (
        probabilities >= sampling.min_p * probabilities.max()
    )
    probabilities = probabilities[is_kept]
    return ids[is_kept], probabilities / probabilities.sum()


@st.composite
def rows_of_requests(draw: st.DrawFn) -> tuple[int, list[dict], torch.dtype]:
    """A seed, the parameters of some requests, and what the logits are made of."""
    one = st.fixed_dictionaries(
        {
            "temperature": st.sampled_from([0.0, 0.7, 1.0]),
            "repetition_penalty": st.sampled_from([1.0, 1.1, 0.7]),
            "top_k": st.sampled_from([0, 0, 1, 40, 300]),
            "top_p": st.sampled_from([1.0, 1.0, 0.5, 0.95]),
            "min_p": st.sampled_from([0.0, 0.0, 0.05]),
            "min_new_tokens": st.sampled_from([0, 0, 2]),
            "presence_penalty": st.sampled_from([0.0, 0.0, 1.5, -0.5]),
            "frequency_penalty": st.sampled_from([0.0, 0.0, 0.5, -2.0]),
            "logit_bias": st.sampled_from([(), (), ((7, 100.0), (299, -100.0)), ((0, 2.5), (2, 4.0))]),
            "top_logprobs": st.sampled_from([None, None, 0, 20]),
        }
    )
    return draw(st.integers(0, 10_000)), draw(st.lists(one, min_size=1, max_size=6)), draw(st.sampled_from(FLOATS))


@settings(max_examples=60, deadline=None)
@given(case=rows_of_requests(), vocabulary=st.sampled_from([300, 1024, 4000]))
def test_tokens_are_those_of_the_plain_formulas(case: tuple[int, list[dict], torch.dtype], vocabulary: int) -> None:
    seed, params, dtype = case
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    sampler, requests = Sampler(EOS), []
    for number, one in enumerate(params):
        prompt = [chance.randrange(vocabulary) for _ in range(chance.randrange(1, 300))]
        requests.append(Request(number, prompt, len(prompt), SamplingParams(**one), 0.0))
    for _ in range(4):
        logits = (torch.randn(len(requests), vocabulary, generator=generator) * 3).to(dtype)
        expected = []
        for row, request in zip(logits, requests, strict=True):
            plain = adjusted(row, request)
            if request.sampling.temperature == 0:
                expected.append(int(plain.argmax()))
                continue
            ids, probabilities = kept(plain, request.sampling)
            nth = chance.randrange(len(ids))
            if probabilities[nth] < 1e-4:  # a place too small for float32 to hit its middle
                nth = int(probabilities.argmax())
            before = probabilities[:nth].sum()
            request.random = OneDraw(float(before + probabilities[nth] / 2))
            expected.append(int(ids[nth]))

        chosen = sampler.sample(logits, requests).tokens

        assert chosen == expected
        for request, token in zip(requests, chosen, strict=True):
            request.tokens.append(token)
        chance.shuffle(requests)
        requests = requests[: max(1, len(requests) - chance.randrange(2))]  # some end, and the others move


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shift", [0.0, -40.0])
def test_the_likeliest_token_is_the_first_of_equals_in_every_format(dtype: torch.dtype, shift: float) -> None:
    logits = (torch.randn(50, 5000, generator=torch.Generator().manual_seed(3)) * 3 + shift).round().to(dtype)
    first = [row.tolist().index(max(row.tolist())) for row in logits]

    assert likeliest(logits) == first
    assert [likeliest(logits[[row]])[0] for row in range(50)] == first


@pytest.mark.parametrize("dtype", FLOATS)
def test_zeros_of_both_signs_are_equals(dtype: torch.dtype) -> None:
    logits = torch.tensor([[-1.0, -0.0, 0.0, -2.0], [-1.0, 0.0, -0.0, -3.0]], dtype=dtype)

    assert likeliest(logits) == [1, 1]


@pytest.mark.parametrize("dtype", FLOATS)
def test_infinite_logits_are_larger_and_smaller_than_all_others(dtype: torch.dtype) -> None:
    infinity = float("inf")
    logits = torch.tensor([[3.0, -infinity, infinity, infinity], [-infinity, -infinity, -5.0, -4.0]], dtype=dtype)

    assert likeliest(logits) == [2, 3]


def test_the_logits_of_a_runner_are_left_as_they_were(new_request) -> None:
    logits = torch.randn(2, 512, generator=torch.Generator().manual_seed(1))
    before = logits.clone()
    one, other = new_request(temperature=0.7, repetition_penalty=1.3), new_request(1, temperature=1.0, top_p=0.5)

    Sampler(EOS).sample(logits, [one, other])

    assert torch.equal(logits, before)


@settings(max_examples=30, deadline=None)
@given(case=rows_of_requests(), flatness=st.sampled_from([3.0, 0.5]))
def test_a_token_is_the_same_alone_and_beside_any_others(
    case: tuple[int, list[dict], torch.dtype], flatness: float
) -> None:
    seed, params, dtype = case
    logits = (torch.randn(len(params), 8000, generator=torch.Generator().manual_seed(seed)) * flatness).to(dtype)

    def fresh() -> list[Request]:
        return [
            Request(number, [seed % 7, number], 2, SamplingParams(**one, seed=seed), 0.0)
            for number, one in enumerate(params)
        ]

    together = Sampler(EOS).sample(logits, fresh()).tokens
    alone = [Sampler(EOS).sample(logits[[row]], [request]).tokens[0] for row, request in enumerate(fresh())]

    assert together == alone


def test_a_sampler_serves_batches_of_any_size_and_vocabulary_one_after_the_other(new_request) -> None:
    sampler = Sampler(EOS)
    for rows, vocabulary in ((3, 700), (1, 700), (5, 1024), (2, 300)):
        generator = torch.Generator().manual_seed(rows)
        logits = torch.randn(rows, vocabulary, generator=generator)
        requests = [new_request(seed=number, temperature=1.0) for number in range(rows)]
        again = [new_request(seed=number, temperature=1.0) for number in range(rows)]

        assert sampler.sample(logits, requests).tokens == Sampler(EOS).sample(logits, again).tokens

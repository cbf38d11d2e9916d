"""Models that the paged cache cannot hold: one request at a time, and as right as the others."""

import json

import pytest

from inferapi.domain.generation import FinishReason

families = pytest.mark.parametrize("family", ["mamba", "bloom", "falcon", "dynamic-llama"])


@families
def test_the_model_says_why_it_is_not_batched(tiny, family: str) -> None:
    facts = tiny(family).model.facts

    assert facts.batching == "sequential"
    assert len(facts.batching_reason) > 10
    assert facts.kv_cache_tokens == 0


@families
def test_requests_one_after_the_other_answer_as_generate_does(
    tiny, new_request, drive, generate, prompt_of, answer_of, family: str
) -> None:
    model = tiny(family)
    requests = [new_request(prompt_of(length), 12) for length in (1, 50, 9)]
    for request in requests:
        model.model.loop.submit(request)
    drive(model.model.loop, steps=1)
    busy = model.model.loop.load

    drive(model.model.loop)

    assert (busy.running, busy.waiting) == (1, 2)
    for request in requests:
        expected = generate(model.reference, request.tokens[: request.num_prompt_tokens], 12)
        assert len(set(expected)) > 2
        assert answer_of(request) == expected


@families
def test_after_a_cancellation_the_next_request_is_served(
    tiny, new_request, drive, generate, prompt_of, answer_of, family: str
) -> None:
    model = tiny(family)
    loop = model.model.loop
    cancelled, waiting, following = (new_request(prompt_of(length), 10) for length in (20, 21, 22))
    drive(loop, [cancelled, waiting, following], steps=3)

    loop.cancel(cancelled.request_id)
    loop.cancel(waiting.request_id)
    after = loop.load
    drive(loop)

    assert cancelled.num_completion_tokens == 3
    assert (after.running, after.waiting) == (0, 1)
    assert waiting.num_completion_tokens == 0
    assert answer_of(following) == generate(model.reference, prompt_of(22), 10)
    assert loop.is_idle


def test_sampling_is_the_engines_own_there_too(tiny, new_request, drive, prompt_of, answer_of) -> None:
    loop = tiny("mamba").model.loop
    requests = [new_request(prompt_of(9), temperature=2.0, top_p=0.95, seed=seed) for seed in (1, 1, 2)]
    penalized = new_request(prompt_of(9), repetition_penalty=1.3)
    plain = new_request(prompt_of(9))

    drive(loop, [*requests, penalized, plain])

    first, same, other = map(answer_of, requests)
    assert first == same != other
    assert answer_of(penalized) != answer_of(plain)


def test_every_end_token_of_the_generation_config_ends_an_answer(
    write_model, load, new_request, drive, generate, tiny, prompt_of, answer_of
) -> None:
    answer = generate(tiny("dynamic-llama").reference, prompt_of(9), 10)
    end = answer[4]
    folder = write_model("dynamic-llama")
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [256, end]}))
    model = load(folder)
    request = new_request(prompt_of(9), 10, ignore_eos=False)

    answers = drive(model.loop, [request])

    assert model.facts.batching == "sequential"
    assert answer_of(request) == answer[: answer.index(end) + 1]
    assert answers.finish[request.request_id].reason is FinishReason.STOP

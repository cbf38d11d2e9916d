"""In a batch or alone, whole or in chunks: token for token what transformers' generate answers."""

import pytest

families = pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "mistral", "gemma3", "gemma2"])


@families
def test_the_model_is_batched(tiny, family: str) -> None:
    facts = tiny(family).model.facts

    assert (facts.batching, facts.batching_reason) == ("continuous", "")
    assert facts.attention == ("eager" if family == "gemma2" else "sdpa")  # capped scores need the plain formula


@families
@pytest.mark.parametrize("length", [1, 30, 64, 700])  # of which 700 takes two chunks
def test_alone_the_answer_is_that_of_generate(
    tiny, new_request, drive, generate, prompt_of, answer_of, family: str, length: int
) -> None:
    model = tiny(family)
    request = new_request(prompt_of(length))

    drive(model.model.loop, [request])

    expected = generate(model.reference, prompt_of(length))
    assert len(set(expected)) > 3  # an answer worth comparing
    assert answer_of(request) == expected


@families
def test_among_others_that_join_and_leave_the_answer_is_that_of_generate(
    tiny, new_request, drive, generate, prompt_of, answer_of, family: str
) -> None:
    model = tiny(family)
    loop = model.model.loop
    first = [new_request(prompt_of(40), 40), new_request(prompt_of(7), 12), new_request(prompt_of(90), 60)]
    joined = [new_request(prompt_of(300), 25), new_request(prompt_of(1), 30), new_request(prompt_of(64), 5)]
    last = [new_request(prompt_of(130), 15), new_request(prompt_of(20), 15)]

    drive(loop, first, steps=3)
    drive(loop, joined, steps=5)  # 300 tokens beside decodes: three chunks
    loop.cancel(first[2].request_id)
    drive(loop, last)

    assert first[2].num_completion_tokens < 60
    assert loop.load.kv_cache_usage_ratio == 0.0
    for request in (*first[:2], *joined, *last):
        prompt = request.tokens[: request.num_prompt_tokens]
        assert answer_of(request) == generate(model.reference, prompt, request.sampling.max_new_tokens)

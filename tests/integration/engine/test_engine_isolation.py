"""What is wrong with one request or one model stays there."""

import pytest
import torch
from transformers import PreTrainedModel

POISON = 7
"""The token whose embedding is not a number, so that all keys and values after it are not either."""


def poison(model: PreTrainedModel) -> None:
    model.get_input_embeddings().weight[POISON] = float("nan")


@pytest.fixture(scope="module")
def engine(write_model, load):
    return load(write_model("llama", poison)).loop


@pytest.fixture
def healthy(prompt_of):
    """A prompt without the poisoned token, and one with it."""

    def make(length: int, seed: int = 0) -> list[int]:
        return [token if token != POISON else POISON + 1 for token in prompt_of(length, seed)]

    return make


@pytest.fixture
def expected(tiny, generate, healthy):
    """Answers of the model before it was poisoned: nothing else of it was touched."""
    answer = generate(tiny("llama").reference, healthy(30), 20)
    assert POISON not in answer
    return answer


def test_the_poison_works(engine, new_request, drive, healthy, expected, answer_of) -> None:
    poisoned, request = new_request([POISON, *healthy(29)]), new_request(healthy(30))

    drive(engine, [poisoned])
    drive(engine, [request])

    assert len(set(answer_of(poisoned))) == 1  # not a number has no likeliest token
    assert answer_of(request) == expected  # and its blocks were used again


def test_a_poisoned_companion_spoils_nobody(engine, new_request, drive, healthy, expected, answer_of) -> None:
    requests = [new_request([POISON, *healthy(50)]), new_request(healthy(30)), new_request([*healthy(9), POISON])]

    drive(engine, requests)

    assert answer_of(requests[1]) == expected


def test_blocks_that_a_poisoned_request_left_spoil_nobody(
    engine, new_request, drive, healthy, expected, answer_of
) -> None:
    before, request = new_request([POISON, *healthy(60)], 3), new_request(healthy(30), 20)

    drive(engine, [before, request])  # the first leaves its block while the second decodes in the next one

    assert before.num_completion_tokens == 3
    assert answer_of(request) == expected


def test_blocks_of_a_cancelled_request_spoil_nobody(engine, new_request, drive, healthy, expected, answer_of) -> None:
    before, request = new_request([POISON, *healthy(40)]), new_request(healthy(30))
    drive(engine, [before, request], steps=4)

    engine.cancel(before.request_id)
    drive(engine)

    assert answer_of(request) == expected


def test_models_in_one_process_do_not_disturb_each_other(
    tiny, new_request, drive, generate, prompt_of, answer_of
) -> None:
    models = [tiny("llama"), tiny("qwen3")]
    requests = [new_request(prompt_of(100), 10) for _ in models]
    for _ in range(12):  # in turns
        for model, request in zip(models, requests, strict=True):
            drive(model.model.loop, [request] if not request.num_computed_tokens else [], steps=1)

    assert [answer_of(r) for r in requests] == [generate(m.reference, prompt_of(100), 10) for m in models]


def test_threads_of_the_caller_are_left_as_they_were(tiny) -> None:
    before = torch.get_num_threads()

    tiny("mistral")

    assert torch.get_num_threads() == before

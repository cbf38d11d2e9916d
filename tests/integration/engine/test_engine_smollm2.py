"""The demo model on the real engine."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from inferapi.domain.chat import Message
from inferapi.domain.generation import FinishReason, Prompt, SamplingParams

pytestmark = pytest.mark.model

TEXTS = (
    "Once upon a time there was a dragon who",
    "The three largest cities of Europe are",
    "def fibonacci(n):\n",
    "Water boils at",
    "Dear Sir or Madam,",
    "In 1969, two men",
    "Recipe for pancakes: first,",
    "She opened the door and " * 30,  # beside decodes, more than a chunk
)
NEW = 40


@pytest.fixture(scope="module")
def prompts(smollm2) -> list[list[int]]:
    encoder = smollm2("float32").encoder
    return [encoder.encode(Prompt(text=text), SamplingParams())[0] for text in TEXTS]


@pytest.fixture(scope="module")
def expected(demo_folder, prompts, generate) -> list[list[int]]:
    """What transformers' generate answers to each prompt alone."""
    reference = AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32).eval()
    reference.generation_config = GenerationConfig()  # generate fills what is left open from here
    return [generate(reference, prompt, NEW) for prompt in prompts]


def test_the_model_is_batched_in_both_dtypes(smollm2) -> None:
    facts = [smollm2(dtype).facts for dtype in ("float32", "bfloat16")]

    assert [(fact.batching, fact.dtype) for fact in facts] == [("continuous", "float32"), ("continuous", "bfloat16")]


def test_alone_every_token_is_that_of_generate(smollm2, prompts, expected, new_request, drive, answer_of) -> None:
    request = new_request(prompts[0], NEW)

    drive(smollm2("float32").loop, [request])

    assert answer_of(request) == expected[0]


def test_with_seven_others_every_token_is_that_of_generate(
    smollm2, prompts, expected, new_request, drive, answer_of
) -> None:
    requests = [new_request(prompt, NEW) for prompt in prompts]
    loop = smollm2("float32").loop

    drive(loop, requests[:3], steps=4)
    drive(loop, requests[3:])

    assert [answer_of(request) for request in requests] == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_capital_of_france_is_paris(smollm2, new_request, drive, dtype: str) -> None:
    model = smollm2(dtype)
    messages = (
        Message("system", "You are a helpful assistant."),
        Message("user", "What is the capital of France?"),
    )
    tokens, _ = model.encoder.encode(Prompt(messages=messages), SamplingParams())
    request = new_request(tokens, NEW, ignore_eos=False)

    answers = drive(model.loop, [request])

    assert "Paris" in answers.text(request)
    assert answers.finish[request.request_id].reason is FinishReason.STOP


def test_emoji_stream_whole(smollm2, new_request, drive, answer_of) -> None:
    model = smollm2("bfloat16")
    texts = ["\N{GRINNING FACE}\N{PARTY POPPER}" * 12, "\u4f60\u597d\uff0c" * 10, "\N{FAMILY}\N{ZERO WIDTH JOINER}" * 9]
    requests = [new_request(model.encoder.encode(Prompt(text=text), SamplingParams())[0], 30) for text in texts]

    answers = drive(model.loop, requests)

    for request in requests:
        whole = model.encoder._tokenizer.decode(answer_of(request), skip_special_tokens=True)
        assert answers.text(request) == whole
        assert not any("\ufffd" in piece for piece in answers.pieces[request.request_id][:-1])
    assert sum(ord(letter) > 0x7F for request in requests for letter in answers.text(request)) > 20


def test_a_seed_repeats_its_answer_whoever_else_is_there(smollm2, prompts, new_request, drive, answer_of) -> None:
    loop = smollm2("float32").loop
    sampling = {"temperature": 1.0, "top_p": 0.95, "repetition_penalty": 1.1, "seed": 5}
    alone, again = new_request(prompts[0], 15, **sampling), new_request(prompts[0], 15, **sampling)
    others = [new_request(prompt, 15, temperature=1.0) for prompt in prompts[1:4]]

    drive(loop, [alone])
    drive(loop, [*others, again])

    assert answer_of(again) == answer_of(alone)

"""What the demo model thinks of natural texts, on the native kernels, against transformers in float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from transformers import AutoModelForCausalLM

from inferapi.domain.generation import Prompt, SamplingParams
from native_kernels import compiled  # noqa: F401 - a fixture
from teacher_forcing import logits_of

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("compiled")]

TEXTS = (
    (
        "The water cycle describes how water moves on, above and below the surface of the Earth. Heat from the "
        "sun makes water evaporate from oceans, lakes and rivers. The vapour rises, cools and condenses into "
        "clouds, and falls back to the ground as rain or snow, where it runs into streams or sinks into the soil."
    ),
    (
        "It was late in the evening when the old fisherman came home. He put his nets by the door, sat down at "
        "the table and did not say a word. His daughter looked at him for a long time. At last she asked what "
        "had happened, and he told her about the light that he had seen out on the sea."
    ),
    (
        "def mean(numbers):\n    total = 0\n    for number in numbers:\n        total += number\n    return "
        "total / len(numbers)\n\n\ndef variance(numbers):\n    centre = mean(numbers)\n    return mean([(number "
        "- centre) ** 2 for number in numbers])\n"
    ),
    (
        "<|im_start|>user\nWhat is the capital of France, and what is it known for?<|im_end|>\n"
        "<|im_start|>assistant\nThe capital of France is Paris. It is known for the Eiffel Tower, the Louvre, "
        "its food and its fashion.<|im_end|>\n"
    ),
    (
        "Ingredients: 200 g flour, 2 eggs, 300 ml milk, a pinch of salt, butter for the pan. 1. Whisk the eggs "
        "with the milk. 2. Stir in the flour and the salt until the batter is smooth. 3. Let it rest for 20 "
        "minutes. 4. Fry thin pancakes on both sides until they are golden."
    ),
    (
        "The committee met on Tuesday to discuss the budget for the coming year. Several members asked for more "
        "money for roads and schools, while others warned that taxes would have to rise. No decision was taken, "
        "and the debate will go on next week."
    ),
)
LIKELY = 0.01  # tokens that float32 gives at least this probability


@dataclass(frozen=True)
class Tolerance:
    """Of log-probabilities of likely tokens, in nats; of the perplexity; how often the likeliest token is the same."""

    mean: float
    most: float
    perplexity_ratio: float
    agreement: float


# Measured: mean 0.043, 0.124 and 0.101; most 0.36, 1.01 and 0.86; perplexity 0.999, 1.006 and 0.998 of float32's; the
# most likely token the same for 98, 95 and 96 of 100. The demo model was stored in 4 bits: int4 loses little of it.
TOLERANCES = {
    None: Tolerance(mean=0.07, most=0.7, perplexity_ratio=1.015, agreement=0.95),
    "int8": Tolerance(mean=0.18, most=1.7, perplexity_ratio=1.03, agreement=0.9),
    "int4": Tolerance(mean=0.16, most=1.5, perplexity_ratio=1.03, agreement=0.92),
}


@pytest.fixture(scope="module")
def tokens(smollm2) -> list[list[int]]:
    encoder = smollm2("float32").encoder
    return [encoder.encode(Prompt(text=text), SamplingParams())[0] for text in TEXTS]


@pytest.fixture(scope="module")
def expected(demo_folder, tokens) -> list[torch.Tensor]:
    """Log-probabilities ``[T, V]`` of every text."""
    model = AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [model(torch.tensor([text]), use_cache=False).logits[0].log_softmax(-1) for text in tokens]


@pytest.fixture(scope="module")
def measured(demo_folder, load, tokens) -> Callable[[str | None], list[torch.Tensor]]:
    """The same as the engine computes them: all texts in a batch, token by token but for how they begin."""

    def measure(quantization: str | None) -> list[torch.Tensor]:
        runner = load(demo_folder, dtype="bfloat16", quantization=quantization).loop._runner
        found = logits_of(runner, tokens)
        return [torch.stack([rows[end] for end in sorted(rows)]).float().log_softmax(-1) for rows in found]

    return measure


def perplexity(log_probabilities: list[torch.Tensor], tokens: list[list[int]]) -> float:
    losses = [
        -rows[:-1].gather(1, torch.tensor(text[1:])[:, None])
        for rows, text in zip(log_probabilities, tokens, strict=True)
    ]
    return math.exp(float(torch.cat(losses).mean()))


@pytest.mark.parametrize("quantization", TOLERANCES)
def test_likely_tokens_stay_as_likely_and_the_perplexity_what_it_is(
    measured, expected, tokens, quantization: str | None
) -> None:
    tolerance = TOLERANCES[quantization]

    found = measured(quantization)

    differences = torch.cat(
        [(mine - exact)[exact > math.log(LIKELY)].abs() for mine, exact in zip(found, expected, strict=True)]
    )
    ratio = perplexity(found, tokens) / perplexity(expected, tokens)
    agree = torch.cat([mine.argmax(-1) == exact.argmax(-1) for mine, exact in zip(found, expected, strict=True)])
    assert float(differences.mean()) < tolerance.mean
    assert float(differences.max()) < tolerance.most
    assert abs(math.log(ratio)) < math.log(tolerance.perplexity_ratio)
    assert float(agree.float().mean()) > tolerance.agreement

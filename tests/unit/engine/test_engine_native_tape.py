"""A pass that was written down, and is repeated with other inputs."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest
import torch
from torch import nn

from inferapi.engine.native.calls import Activation, Format
from inferapi.engine.native.formats import pack
from inferapi.engine.native.modules import GatedMlp, NativeLinear, NativeNorm
from inferapi.engine.native.tape import NotRepeatableError, Size, Tape, record
from native_kernels import ChosenThreads, Weighted, normal

ROWS, OUTPUTS, VOCABULARY, WIDTH = 4, 5, 50, 64


class Little(nn.Module):
    """An embedding, a residual block and an output layer: native calls with PyTorch's operations between them."""

    def __init__(self, kernels: ChosenThreads) -> None:
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(normal(VOCABULARY, WIDTH))
        self.places = nn.Embedding.from_pretrained(normal(200, WIDTH, seed=1))
        self.norm = NativeNorm(kernels, Weighted(normal(WIDTH, seed=2)), 1e-5, 0.0)
        gate, up = (pack(normal(96, WIDTH, seed=seed, scale=0.2), None, Format.BF16) for seed in (3, 4))
        down = NativeLinear(kernels, pack(normal(WIDTH, 96, seed=5, scale=0.2), None, Format.INT8))
        self.mlp = GatedMlp(kernels, gate, up, down, Activation.SILU)
        self.head = NativeLinear(kernels, pack(normal(VOCABULARY, WIDTH, seed=6), None, Format.INT4))

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens) + self.places(positions)
        hidden = hidden + self.mlp(self.norm(hidden))
        return self.head((torch.tanh(hidden / 4) * 4)[:, keep])[0]


def numbers(*values: int) -> torch.Tensor:
    return torch.tensor([values])


Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@pytest.fixture
def inputs() -> Inputs:
    """Tokens, positions and the tokens whose outputs are wanted: what a tape reads at every repetition."""
    return numbers(1, 2, 3, 4), numbers(10, 11, 12, 13), torch.tensor([0, 1, 2, 3, 0])


@torch.inference_mode()
def tape_of(
    kernels: ChosenThreads, forward: Callable[[], torch.Tensor], inputs: Inputs, used: tuple[int, int] = (ROWS, OUTPUTS)
) -> Tape:
    return record(kernels, forward, inputs, Size(ROWS, OUTPUTS, *used))


def set_inputs(inputs: Inputs, *contents: torch.Tensor) -> None:
    for tensor, content in zip(inputs, contents, strict=True):
        tensor[..., : content.shape[-1]] = content


@torch.inference_mode()
def test_a_repetition_is_to_the_bit_the_pass_itself(kernels: ChosenThreads, inputs: Inputs) -> None:
    model = Little(kernels)
    tape = tape_of(kernels, lambda: model(*inputs), inputs)

    for new in (
        (numbers(1, 2, 3, 4), numbers(10, 11, 12, 13), torch.tensor([0, 1, 2, 3, 3])),
        (numbers(49, 0, 7, 7), numbers(0, 199, 5, 5), torch.tensor([3, 2, 1, 0, 0])),
        (numbers(4, 3, 2, 1), numbers(13, 12, 11, 10), torch.tensor([1, 1, 1, 1, 2])),
    ):
        set_inputs(inputs, *new)
        assert torch.equal(tape.repeat(ROWS, OUTPUTS), model(*new))


@torch.inference_mode()
def test_of_fewer_tokens_and_outputs_than_it_was_made_for_the_first_are_computed(
    kernels: ChosenThreads, inputs: Inputs
) -> None:
    model = Little(kernels)
    tape = tape_of(kernels, lambda: model(*inputs), inputs)

    for tokens, outputs in ((3, 3), (1, 1), (2, 1), (4, 2), (3, 0), (4, 4)):
        new = numbers(*range(20, 20 + tokens)), numbers(*range(90, 90 + tokens)), torch.arange(tokens)[-outputs:]
        set_inputs(inputs, *new)
        result = tape.repeat(tokens, outputs)
        assert result.shape == (outputs, VOCABULARY)
        assert torch.equal(result, model(*new)[:outputs])


@pytest.mark.parametrize("used", [(1, 1), (3, 0), (2, 2)])
@torch.inference_mode()
def test_what_was_made_with_little_in_use_serves_all_of_it(
    kernels: ChosenThreads, inputs: Inputs, used: tuple[int, int]
) -> None:
    model = Little(kernels)
    tape = tape_of(kernels, lambda: model(*inputs), inputs, used)
    new = numbers(9, 8, 7, 6), numbers(1, 2, 3, 4), torch.tensor([3, 1, 2, 0, 0])

    set_inputs(inputs, *new)

    assert torch.equal(tape.repeat(ROWS, OUTPUTS), model(*new))


@torch.inference_mode()
def test_nothing_of_it_goes_when_the_garbage_is_collected_and_memory_is_used_again(
    kernels: ChosenThreads, inputs: Inputs
) -> None:
    model = Little(kernels)
    tape = tape_of(kernels, lambda: model(*inputs), inputs)
    for _ in range(3):
        gc.collect()
        spoil = [torch.full((ROWS, width), torch.nan) for width in (VOCABULARY, WIDTH, 96) for _ in range(50)]
        del spoil
    new = numbers(5, 6, 7, 8), numbers(1, 2, 3, 4), torch.arange(4)

    set_inputs(inputs, *new)

    assert torch.equal(tape.repeat(ROWS, 4), model(*new))


@torch.inference_mode()
def test_the_number_of_threads_may_change_between_repetitions(kernels: ChosenThreads, inputs: Inputs) -> None:
    model = Little(kernels)
    tape = tape_of(kernels, lambda: model(*inputs), inputs)
    expected = tape.repeat(ROWS, OUTPUTS).clone()

    for kernels.chosen in (4, 1, 2, 3, 1, 4):
        assert torch.equal(tape.repeat(ROWS, OUTPUTS), expected)


@torch.inference_mode()
def test_two_tapes_of_one_model_do_not_disturb_each_other(kernels: ChosenThreads, inputs: Inputs) -> None:
    model = Little(kernels)
    others = numbers(30, 31, 32, 33), numbers(0, 1, 2, 3), torch.tensor([3, 3, 3, 3, 3])
    first = tape_of(kernels, lambda: model(*inputs), inputs)
    second = tape_of(kernels, lambda: model(*others), others)

    expected = model(*inputs), model(*others)

    for _ in range(2):
        assert torch.equal(first.repeat(ROWS, OUTPUTS), expected[0])
        assert torch.equal(second.repeat(ROWS, OUTPUTS), expected[1])


@torch.inference_mode()
def test_a_kernel_that_computes_some_of_the_rows_is_refused_and_calls_are_made_again(
    kernels: ChosenThreads, inputs: Inputs
) -> None:
    model = Little(kernels)
    expected = model(*inputs)

    with pytest.raises(NotRepeatableError, match="2 rows"):
        tape_of(kernels, lambda: model.head(model.embedding(inputs[0])[:, :2]), inputs)

    assert kernels.redirect is None
    assert torch.equal(model(*inputs), expected)

"""What PyTorch computes between the kernels of a pass that is written down: repeated, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from inferapi.engine.native.calls import Format
from inferapi.engine.native.formats import pack
from inferapi.engine.native.modules import NativeLinear
from inferapi.engine.native.tape import NotRepeatableError, Size, record
from native_kernels import ChosenThreads, normal

ROWS, VOCABULARY, WIDTH = 4, 50, 64
SIZE = Size(ROWS, ROWS + 1, ROWS, ROWS)


def numbers(*values: int) -> torch.Tensor:
    return torch.tensor([values])


@pytest.fixture
def inputs() -> tuple[torch.Tensor]:
    """The tokens, which a tape reads at every repetition."""
    return (numbers(1, 2, 3, 4),)


def _in_place(x: torch.Tensor) -> torch.Tensor:
    x = x * 2
    x.add_(1)
    x[:, :, :3] = 0
    return x.mul_(x)


def _into_a_tensor_like_it(x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(x)
    out.index_add_(1, torch.arange(ROWS).flip(0), x)
    return out.masked_fill_(x > 1, 0.5)


def _into_one_of_its_own(x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(1, ROWS, WIDTH).bfloat16()
    return out.index_add_(1, torch.arange(ROWS).flip(0), x)


def _into_a_filled_one(x: torch.Tensor) -> torch.Tensor:
    mask = torch.full((1, ROWS, WIDTH), -1.0)
    return mask.masked_fill_(x > 0, 0.0).bfloat16()


def _scattered(x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(1, ROWS, WIDTH)
    return out.scatter_(2, x.float().argsort(-1)[..., :5], 1.0).bfloat16()


def _through_views(x: torch.Tensor) -> torch.Tensor:
    first, second = x.clone().chunk(2, -1)
    first += second
    return torch.cat([second, first], -1)


def _with_several_outputs(x: torch.Tensor) -> torch.Tensor:
    values, places = x.topk(4, -1)
    return torch.cat([values, places.bfloat16(), *x[..., 8:].split([10, 46], -1)], -1)


def _constants(x: torch.Tensor) -> torch.Tensor:
    return x * torch.arange(WIDTH).bfloat16() + torch.ones(WIDTH).cumsum(0).bfloat16()


def _picked_rows(x: torch.Tensor) -> torch.Tensor:
    table = torch.arange(10.0).bfloat16()
    return x * table[x.float().argmax(-1, keepdim=True) % 10]


def _through_copies(x: torch.Tensor) -> torch.Tensor:
    out = torch.empty(1, ROWS, WIDTH, dtype=torch.bfloat16)
    out.copy_(x)
    return out.contiguous().to(torch.float32).to(torch.bfloat16)


def _by_a_tensor_made_of_a_list(x: torch.Tensor) -> torch.Tensor:
    return x[:, torch.tensor([3, 2, 1, 0])] * torch.tensor(2.0)


passes = {
    "in place": _in_place,
    "into a tensor like it": _into_a_tensor_like_it,
    "into one of its own": _into_one_of_its_own,
    "into a filled one": _into_a_filled_one,
    "scattered": _scattered,
    "through views": _through_views,
    "with several outputs": _with_several_outputs,
    "constants": _constants,
    "picked rows": _picked_rows,
    "through copies": _through_copies,
    "by a tensor made of a list": _by_a_tensor_made_of_a_list,
}


@pytest.mark.parametrize("name", passes)
@torch.inference_mode()
def test_operations_of_all_kinds_between_the_kernels_are_repeated(
    kernels: ChosenThreads, inputs: tuple[torch.Tensor], name: str
) -> None:
    embedding = nn.Embedding.from_pretrained(normal(VOCABULARY, WIDTH))
    head = NativeLinear(kernels, pack(normal(VOCABULARY, WIDTH, seed=6), None, Format.BF16))

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        return head(passes[name](embedding(tokens)))[0]

    tape = record(kernels, lambda: forward(inputs[0]), inputs, SIZE)

    for tokens in (numbers(1, 2, 3, 4), numbers(9, 8, 7, 6), numbers(40, 0, 40, 0)):
        inputs[0][:] = tokens
        tape.repeat(ROWS, ROWS)
        assert torch.equal(tape._outputs, forward(tokens))


def _chooses(x: torch.Tensor) -> torch.Tensor:
    return x if x[0, 0, 0] > 0 else -x


def _reads_out(x: torch.Tensor) -> torch.Tensor:
    return x * x.sum().item()


def _lists(x: torch.Tensor) -> torch.Tensor:
    return x * sum(x[0, :, 0].tolist())


def _reads_through_numpy(x: torch.Tensor) -> torch.Tensor:
    return x * float(x[0, :, 0].float().numpy().sum())


def _picks(x: torch.Tensor) -> torch.Tensor:
    return x[x > 0]


def _finds(x: torch.Tensor) -> torch.Tensor:
    return x[0, (x[0, :, 0] > -100).nonzero()[:, 0]]


def _finds_where(x: torch.Tensor) -> torch.Tensor:
    return x[0, torch.where(x[0, :, 0] > -100)[0]]


def _masks(x: torch.Tensor) -> torch.Tensor:
    return torch.masked_select(x, x > 0)


def _counts(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.one_hot(x.float().argmax(-1)).bfloat16()


def _draws(x: torch.Tensor) -> torch.Tensor:
    return x + torch.rand_like(x)


def _compares(x: torch.Tensor) -> torch.Tensor:
    return x if torch.equal(x, x + 1) else -x


def _any_of_them(x: torch.Tensor) -> torch.Tensor:
    return x if (x > 3).any() else -x


def _iterates(x: torch.Tensor) -> torch.Tensor:
    return x * sum(int(value) for value in (x[0, :, 0] * 8))


refused = {
    "chooses": _chooses,
    "reads out": _reads_out,
    "lists": _lists,
    "reads through numpy": _reads_through_numpy,
    "picks": _picks,
    "finds": _finds,
    "finds where": _finds_where,
    "masks": _masks,
    "counts": _counts,
    "draws": _draws,
    "compares": _compares,
    "any of them": _any_of_them,
    "iterates": _iterates,
}


@pytest.mark.parametrize("name", refused)
@torch.inference_mode()
def test_a_pass_that_depends_on_its_data_is_refused(
    kernels: ChosenThreads, inputs: tuple[torch.Tensor], name: str
) -> None:
    embedding = nn.Embedding.from_pretrained(normal(VOCABULARY, WIDTH))

    with pytest.raises(NotRepeatableError):
        record(kernels, lambda: refused[name](embedding(inputs[0])), inputs, SIZE)

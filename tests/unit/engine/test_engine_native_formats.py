"""Weights packed for the native kernels and read back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inferapi.engine.native.calls import Format
from inferapi.engine.native.formats import _unpack, can_pack, pack
from inferapi.engine.native.modules import SharedEmbedding
from native_kernels import normal

shapes = pytest.mark.parametrize("shape", [(1, 2), (16, 64), (17, 66), (40, 30), (5, 128), (100, 194)])


@shapes
def test_a_bf16_weight_comes_back_as_it_was(shape: tuple[int, int]) -> None:
    weight = normal(*shape)

    assert torch.equal(pack(weight, None, Format.BF16).plain(), weight)


@shapes
def test_an_int8_weight_comes_back_within_half_a_step(shape: tuple[int, int]) -> None:
    weight = normal(*shape).float()
    groups = torch.nn.functional.pad(weight, (0, -shape[1] % 64)).view(shape[0], -1, 64)
    step = (groups.abs().amax(-1, keepdim=True) / 127).expand_as(groups).flatten(1)[:, : shape[1]]

    seen = _unpack(pack(weight, None, Format.INT8))[: shape[0], : shape[1]]

    assert bool(((seen - weight).abs() <= step * 0.5001).all())


@shapes
def test_an_int4_weight_comes_back_within_half_a_step(shape: tuple[int, int]) -> None:
    weight = normal(*shape).float()
    groups = torch.nn.functional.pad(weight, (0, -shape[1] % 64)).view(shape[0], -1, 32)
    step = ((groups.amax(-1, keepdim=True) - groups.amin(-1, keepdim=True)) / 15).expand_as(groups)

    seen = _unpack(pack(weight, None, Format.INT4))[: shape[0], : shape[1]]

    # A scale and a minimum in float16 are off by 2^-11, of a number up to 15 steps and of the minimum.
    allowed = step.flatten(1)[:, : shape[1]] * (0.5 + 15 * 2**-10) + 2**-10 * weight.abs().max()
    assert bool(((seen - weight).abs() <= allowed).all())


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), outputs=st.integers(1, 40), groups=st.integers(1, 6))
def test_a_weight_that_was_stored_as_q4_1_comes_back_exactly(seed: int, outputs: int, groups: int) -> None:
    random = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 16, (outputs, groups, 32), generator=random)
    numbers[..., 5], numbers[..., 20] = 0, 15  # a quantizer leaves no end of its range unused
    scales = (torch.rand((outputs, groups, 1), generator=random) * 0.1 + 1e-3).half()
    minima = -(torch.rand((outputs, groups, 1), generator=random) + 1e-3).half()
    weight = (numbers.float() * scales.float() + minima.float()).flatten(1)

    packed = pack(weight, None, Format.INT4)

    seen = _unpack(packed)[:outputs, : groups * 32]
    # The largest number less the smallest, over 15, is the scale again but for float32's own rounding.
    torch.testing.assert_close(seen, weight, atol=0, rtol=0)


def test_a_q4_1_weight_that_passed_through_bf16_comes_back_within_its_rounding() -> None:
    random = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, 16, (48, 4, 32), generator=random)
    numbers[..., 0], numbers[..., 1] = 0, 15
    scales, minima = (
        torch.rand((48, 4, 1), generator=random).half(),
        -torch.rand((48, 4, 1), generator=random).half() * 8,
    )
    weight = (numbers.float() * scales.float() + minima.float()).flatten(1).bfloat16()

    packed = pack(weight, None, Format.INT4)

    largest = weight.float().abs().view(48, 4, 32).amax(-1, keepdim=True).expand(-1, -1, 32).flatten(1)
    assert bool(((packed.plain().float() - weight.float()).abs() <= largest * 2**-7).all())


@pytest.mark.parametrize("fmt", [Format.INT8, Format.INT4])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.25, 1e-4])
def test_a_group_of_equal_numbers_comes_back_as_it_was(fmt: Format, value: float) -> None:
    weight = torch.full((20, 64), value)

    torch.testing.assert_close(pack(weight, None, fmt).plain().float(), weight, atol=1e-7, rtol=2**-8)


@pytest.mark.parametrize("fmt", list(Format))
def test_packing_leaves_the_weight_and_the_bias_alone(fmt: Format) -> None:
    weight, bias = normal(20, 70), normal(20, seed=1)
    before = weight.clone(), bias.clone()

    packed = pack(weight, bias, fmt)
    weight.zero_()
    bias.zero_()

    assert torch.equal(packed.bias, before[1])
    assert float((packed.plain().float() - before[0].float()).norm() / before[0].float().norm()) < 0.1


def test_a_weight_in_a_quarter_of_the_bits_takes_about_a_quarter_of_the_memory() -> None:
    weight = normal(256, 1024)
    num_bytes = {fmt: pack(weight, None, fmt).num_bytes for fmt in Format}

    assert num_bytes[Format.BF16] == weight.nbytes
    assert num_bytes[Format.INT8] == weight.numel() * (1 + 4 / 64)
    assert num_bytes[Format.INT4] == weight.numel() * (0.5 + 4 / 32)


def test_only_matrices_with_pairs_of_inputs_are_packed() -> None:
    assert can_pack(torch.zeros(3, 4))
    assert not can_pack(torch.zeros(4, 3))
    assert not can_pack(torch.zeros(2, 4, 4))


@pytest.mark.parametrize("shape", [(17, 32), (16, 30), (100, 64)])
def test_an_embedding_reads_its_rows_from_a_packed_weight(shape: tuple[int, int]) -> None:
    weight = normal(*shape)
    embedding = SharedEmbedding(pack(weight, None, Format.BF16))
    ids = torch.tensor([[0, shape[0] - 1, 3, 3], [15, 1, 2, 16 % shape[0]]])

    assert torch.equal(embedding(ids), weight[ids])
    assert torch.equal(embedding.weight, weight)
    assert (embedding.num_embeddings, embedding.embedding_dim) == shape

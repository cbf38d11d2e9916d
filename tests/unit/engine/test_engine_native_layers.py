"""Norms, rotary positions and sums of the native kernels against PyTorch's own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama import modeling_llama

from inferapi.engine.native.calls import Add, Norm, Operation, Rotate
from inferapi.engine.native.modules import NativeNorm, NativeRotary
from native_kernels import BF16_STEP, ChosenThreads, Guarded, Weighted, normal

offsets = pytest.mark.parametrize("offset", [0.0, 1.0])
SIZES = (1, 2, 15, 16, 17, 64, 100, 576, 1025)
original_rotary = getattr(modeling_llama.apply_rotary_pos_emb, "original", modeling_llama.apply_rotary_pos_emb)


def normed(inputs: torch.Tensor, weight: torch.Tensor, epsilon: float, offset: float) -> torch.Tensor:
    """As Llama does it (offset 0: rounded, then weighed) or Gemma (offset 1: all in float32)."""
    x = inputs.float()
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)
    return (x if offset else x.bfloat16().float()) * (weight.float() + offset)


def assert_alike(result: torch.Tensor, exact: torch.Tensor) -> None:
    """Within one rounding to bf16 more than what is compared with."""
    error = (result.float() - exact.float()).abs()
    assert bool((error <= 3 * BF16_STEP * exact.float().abs() + 1e-30).all()), float(error.max())


@offsets
@pytest.mark.parametrize("size", SIZES)
def test_a_norm_of_any_size_is_the_root_mean_square_norm(kernels: ChosenThreads, size: int, offset: float) -> None:
    weight = normal(size, seed=1)
    norm = NativeNorm(kernels, Weighted(weight), 1e-5, offset)

    for rows in (1, 3, 40):
        inputs = normal(1, rows, size, seed=rows, scale=3.0)
        result = norm(inputs)
        assert (result.shape, result.dtype) == (inputs.shape, torch.bfloat16)
        assert_alike(result, normed(inputs, weight, 1e-5, offset))


@offsets
def test_a_norm_of_heads_takes_each_of_them_by_itself(kernels: ChosenThreads, offset: float) -> None:
    weight = normal(48, seed=1)
    norm = NativeNorm(kernels, Weighted(weight), 1e-6, offset)
    projected = normal(1, 7, 5 * 48 + 30, seed=2)
    heads = {
        "dense": projected[..., : 5 * 48].contiguous().view(1, 7, 5, 48),
        "part of a wider row": projected[..., 30:].unflatten(-1, (5, 48)),
        "heads first": projected[..., : 5 * 48].view(1, 7, 5, 48).transpose(1, 2),
        "one token": projected[:, :1, : 5 * 48].view(1, 1, 5, 48),
        "several sequences": normal(3, 2, 5, 48, seed=3),
    }

    for name, inputs in heads.items():
        result = norm(inputs)
        assert result.shape == inputs.shape, name
        assert_alike(result, normed(inputs, weight, 1e-6, offset))


@offsets
def test_the_norm_of_zeros_is_zero(kernels: ChosenThreads, offset: float) -> None:
    result = NativeNorm(kernels, Weighted(normal(20)), 1e-6, offset)(torch.zeros(1, 2, 20).bfloat16())

    assert torch.equal(result, torch.zeros(1, 2, 20).bfloat16())


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 60),
    repeat=st.integers(1, 9),
    size=st.integers(1, 300),
    gap=st.integers(0, 40),
    threads=st.sampled_from([1, 2, 4]),
    offset=st.sampled_from([0.0, 1.0]),
)
def test_a_norm_writes_nothing_beside_its_output(
    compiled, rows: int, repeat: int, size: int, gap: int, threads: int, offset: float
) -> None:
    kernels = ChosenThreads(compiled)
    kernels.chosen = threads
    inputs, weight = normal(rows, repeat * size + gap), normal(size, seed=1)
    output = Guarded((rows, repeat, size))
    call = Norm(
        Operation.NORM,
        inputs.data_ptr(),
        inputs.stride(0),
        size,
        output.tensor.data_ptr(),
        weight.data_ptr(),
        repeat,
        size,
        1e-5,
        offset,
    )

    kernels.run(call, rows)

    assert output.is_intact
    assert_alike(output.tensor, normed(inputs[:, : repeat * size].view(rows, repeat, size), weight, 1e-5, offset))


@offsets
def test_a_norm_is_the_same_to_the_bit_alone_among_others_and_by_many_threads(
    kernels: ChosenThreads, offset: float
) -> None:
    norm = NativeNorm(kernels, Weighted(normal(500, seed=1)), 1e-5, offset)
    inputs = normal(1, 60, 500)
    alone = torch.cat([norm(inputs[:, row : row + 1]) for row in range(60)], 1)

    for kernels.chosen in (1, 2, 4):
        assert torch.equal(norm(inputs), alone)


def angles(rows: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines ``[1, rows, dim]``, halves alike, as rotary embeddings make them."""
    position = torch.arange(rows)[:, None] * torch.logspace(0, -4, dim // 2)[None]
    both = torch.cat([position, position], -1)[None]
    return both.cos().bfloat16(), both.sin().bfloat16()


@pytest.mark.parametrize("dim", [2, 6, 16, 30, 64, 80, 128, 256])
@pytest.mark.parametrize("rows", [1, 2, 33])
def test_rotated_queries_and_keys_are_to_the_bit_those_of_transformers(
    kernels: ChosenThreads, dim: int, rows: int
) -> None:
    projected = normal(1, rows, 8 * dim, seed=1)
    queries = projected[..., : 5 * dim].view(1, rows, 5, dim).transpose(1, 2)
    keys = projected[..., 5 * dim : 7 * dim].view(1, rows, 2, dim).transpose(1, 2)
    cosines, sines = angles(rows, dim)

    for kernels.chosen in (1, 2, 4):
        rotated = NativeRotary(kernels, original_rotary)(queries, keys, cosines, sines)
        expected = original_rotary(queries, keys, cosines, sines)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(rotated, expected, strict=True))
        assert [tensor.shape for tensor in rotated] == [tensor.shape for tensor in expected]


def test_what_is_no_whole_head_of_one_sequence_in_bf16_is_turned_by_the_original(kernels: ChosenThreads) -> None:
    queries, keys = normal(1, 4, 3, 32), normal(1, 2, 3, 32, seed=1)
    cosines, sines = angles(3, 32)
    calls = []

    def original(*args: object, **kwargs: object) -> str:
        calls.append((args, kwargs))
        return "the original's"

    rotary = NativeRotary(kernels, original)
    two = [tensor.expand(2, -1, -1, -1) for tensor in (queries, keys)]
    for arguments, options in (
        ((queries.float(), keys, cosines, sines), {}),
        ((queries, keys, cosines.float(), sines.float()), {}),
        ((*two, cosines, sines), {}),
        ((queries, keys, cosines[..., :16], sines[..., :16]), {}),
        ((queries, keys, cosines[:, :1], sines[:, :1]), {}),
        ((queries, keys, cosines, sines), {"unsqueeze_dim": 2}),
        ((queries, keys, cosines, sines, 2), {}),
    ):
        assert rotary(*arguments, **options) == "the original's"

    assert len(calls) == 7


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 40),
    query_heads=st.integers(1, 9),
    key_heads=st.integers(1, 4),
    half=st.integers(1, 70),
    threads=st.sampled_from([1, 2, 4]),
)
def test_rotating_writes_nothing_beside_its_outputs(
    compiled, rows: int, query_heads: int, key_heads: int, half: int, threads: int
) -> None:
    kernels = ChosenThreads(compiled)
    kernels.chosen = threads
    dim = 2 * half
    queries, keys = normal(rows, query_heads, dim), normal(rows, key_heads, dim, seed=1)
    cosines, sines = angles(rows, dim)
    outputs = Guarded((rows, query_heads, dim)), Guarded((rows, key_heads, dim))
    call = Rotate(
        Operation.ROTATE,
        queries.data_ptr(),
        keys.data_ptr(),
        cosines.data_ptr(),
        sines.data_ptr(),
        *(query_heads * dim, dim, key_heads * dim, dim, dim),
        *(output.tensor.data_ptr() for output in outputs),
        query_heads,
        key_heads,
        dim,
    )

    kernels.run(call, rows)

    assert all(output.is_intact for output in outputs)
    expected = original_rotary(queries, keys, cosines[0], sines[0])
    assert all(torch.equal(output.tensor, turned) for output, turned in zip(outputs, expected, strict=True))


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize(("rows", "size"), [(1, 1), (1, 576), (3, 17), (32, 130), (70, 1000)])
def test_a_sum_is_pytorchs_to_the_bit(kernels: ChosenThreads, rows: int, size: int, threads: int) -> None:
    kernels.chosen = threads
    left, right, output = normal(rows, size), normal(rows, size, seed=1), Guarded((rows, size))

    kernels.run(Add(Operation.ADD, left.data_ptr(), right.data_ptr(), output.tensor.data_ptr(), size), rows)

    assert output.is_intact
    assert torch.equal(output.tensor, left + right)

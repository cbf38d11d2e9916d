import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from inferapi.engine.packing import PackedLinear, can_pack, computed_rows, pack_linears

needs_bfloat16 = pytest.mark.skipif(not can_pack(torch.bfloat16), reason="this CPU has no packed bfloat16 kernels")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


@dtypes
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (3,), (16,), (50,), (2, 7)])
def test_a_packed_layer_computes_what_the_plain_one_does(
    dtype: torch.dtype, shape: tuple[int, ...], *, bias: bool
) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(24, 40, bias=bias).to(dtype)
    inputs = torch.randn(*shape, 24).to(dtype)
    packed = PackedLinear(plain.weight, plain.bias)

    with torch.inference_mode():
        output = packed(inputs)
        exact = nn.functional.linear(inputs.float(), plain.weight.float(), plain.bias.float() if bias else None)

    assert (output.shape, output.dtype) == ((*shape, 40), dtype)
    torch.testing.assert_close(output.float(), exact, atol=ROUNDING[dtype], rtol=ROUNDING[dtype])


@dtypes
@pytest.mark.parametrize("shape", [(33,), (1, 45), (3, 17), (1, 500)])
def test_rows_filled_up_with_zeros_leave_no_trace(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(24, 40).to(dtype)
    inputs = torch.randn(*shape, 24).to(dtype)
    packed = PackedLinear(plain.weight, plain.bias)

    with torch.inference_mode():
        output = packed(inputs)
        unpadded = torch.ops.mkldnn._linear_pointwise(inputs, packed.packed, packed.bias, "none", [], "")

    assert output.shape == unpadded.shape == (*shape, 40)
    torch.testing.assert_close(output, unpadded, atol=ROUNDING[dtype], rtol=ROUNDING[dtype])


def test_long_prompts_are_computed_in_few_numbers_of_rows_and_batches_of_tokens_exactly() -> None:
    counts = {rows: computed_rows(rows) for rows in range(545)}

    assert all(counts[rows] == rows for rows in range(33))
    assert all(0 <= computed - rows < 16 for rows, computed in counts.items())
    assert {computed for computed in counts.values() if computed > 32} == set(range(48, 545, 16))


@dtypes
def test_a_packed_layer_shows_its_plain_weight(dtype: torch.dtype) -> None:
    plain = nn.Linear(24, 40).to(dtype)
    packed = PackedLinear(plain.weight, plain.bias)

    assert (packed.in_features, packed.out_features) == (24, 40)
    assert torch.equal(packed.weight, plain.weight)


class Doubled(nn.Linear):
    """Computes something else than its parent."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(inputs)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.inner = nn.Sequential(nn.Linear(16, 20), nn.GELU(), Doubled(20, 16))
        self.conv = Conv1D(16, 16)
        self.head = nn.Linear(16, 30, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.tensor(1.5))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(self.inner(self.embedding(tokens)))) * self.scale


@pytest.fixture
def tiny() -> Tiny:
    torch.manual_seed(0)
    model = Tiny()
    nn.init.normal_(model.conv.weight)
    nn.init.normal_(model.conv.bias)
    return model


@torch.inference_mode()
def test_a_packed_model_computes_the_same(tiny: Tiny) -> None:
    tokens = torch.arange(30)
    expected = tiny(tokens)

    pack_linears(tiny)

    torch.testing.assert_close(tiny(tokens), expected, atol=1e-4, rtol=1e-4)


def test_linear_layers_and_conv1d_are_packed_and_subclasses_are_left_alone(tiny: Tiny) -> None:
    pack_linears(tiny)

    kinds = {name: type(module) for name, module in tiny.named_modules()}
    assert (kinds["inner.0"], kinds["conv"], kinds["head"]) == (PackedLinear, PackedLinear, PackedLinear)
    assert kinds["inner.2"] is Doubled


def test_a_tied_embedding_keeps_its_weight(tiny: Tiny) -> None:
    weight = tiny.embedding.weight.detach().clone()

    pack_linears(tiny)

    assert torch.equal(tiny.embedding.weight, weight)
    assert torch.equal(tiny.head.weight, weight)


def test_what_is_not_packed_is_copied_out_of_the_weights_file(tiny: Tiny) -> None:
    before = {name: tensor.data_ptr() for name, tensor in (*tiny.named_parameters(), *tiny.named_buffers())}

    pack_linears(tiny)

    after = {name: tensor.data_ptr() for name, tensor in (*tiny.named_parameters(), *tiny.named_buffers())}
    assert {"embedding.weight", "inner.2.weight", "scale"} <= after.keys()
    assert not [name for name in after if before[name] == after[name]]


def test_only_dtypes_with_packed_kernels_are_packed() -> None:
    assert can_pack(torch.float32) == torch.backends.mkldnn.is_available()
    assert not can_pack(torch.float16)
    assert not can_pack(torch.float64)

"""Where a model's modules give way to the native kernels: found by their patterns, each held against the original.

No list of architectures and no copy of a model's code: transformers' own forward pass goes on calling its modules.
What is replaced is what many architectures have alike: linear layers, those of the same inputs together (queries,
keys and values), gated feed-forward blocks, root mean square norms, rotary positions. A block or norm whose replacement
computes something else on a trial input stays as it is.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn
from transformers.pytorch_utils import Conv1D

from inferapi.engine.native.calls import Activation, Format
from inferapi.engine.native.formats import PackedWeight, can_pack, pack
from inferapi.engine.native.huge_pages import Empty, HugePages
from inferapi.engine.native.kernels import Kernels
from inferapi.engine.native.modules import (
    Fused,
    GatedMlp,
    NativeLinear,
    NativeNorm,
    NativeRotary,
    Part,
    SharedEmbedding,
)
from inferapi.engine.packing import largest_list, settle

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FORMATS = {None: Format.BF16, "int8": Format.INT8, "int4": Format.INT4}
_TRIAL_ROWS = 3
# Relative. Rounding gives 0.003, 0.02 and 0.1; another formula, as a rule, much more.
_TOLERANCE = {Format.BF16: 0.02, Format.INT8: 0.06, Format.INT4: 0.3}
# A router's scores decide which experts compute at all; it is small, and stays exact.
_ROUTERS = frozenset({"gate", "router"})
_SAME_INPUTS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
_ROTARY = "apply_rotary_pos_emb"
_ACTIVATIONS = {Activation.SILU: F.silu, Activation.GELU_TANH: partial(F.gelu, approximate="tanh")}
_GATED = ("gate_proj", "up_proj", "down_proj")


class Fuser:
    """Replaces the modules of one model, in place."""

    def __init__(self, kernels: Kernels, quantization: str | None) -> None:
        self._kernels = kernels
        self._format = _FORMATS[quantization]
        self._memory = HugePages()
        self._tried: dict[type, bool] = {}
        self._random = torch.Generator().manual_seed(0)

    def replace_in(self, module: nn.Module) -> None:
        """All that is below ``module``, but an output layer: see ``replace_output``."""
        for parent in list(module.modules()):
            self._replace_mlp(parent)
        for parent in list(module.modules()):
            for names in _SAME_INPUTS:
                self._fuse(parent, names)
            for name, child in list(parent.named_children()):
                wanted = Format.BF16 if name in _ROUTERS else self._format
                if _is_linear(child):
                    setattr(parent, name, self._linear(child, wanted))
                elif "RMSNorm" in type(child).__name__:
                    setattr(parent, name, self._norm(child))

    def replace_output(self, model: PreTrainedModel) -> None:
        """The output layer: int8 at the least. The embedding that it is tied to reads its packed weight."""
        output, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        if not _is_linear(output):
            return
        native = self._linear(output, Format.INT8 if self._format is Format.INT4 else self._format)
        is_tied = getattr(embedding, "weight", None) is output.weight
        model.set_output_embeddings(native)
        if is_tied and type(embedding) is nn.Embedding and native.packed.format is Format.BF16:
            model.set_input_embeddings(SharedEmbedding(native.packed))

    def replace_rotary(self, model: nn.Module) -> None:
        """The function that the model's code turns queries and keys with; other inputs still go to the original."""
        for place in {sys.modules[type(module).__module__] for module in model.modules()}:
            original = getattr(place, _ROTARY, None)
            if callable(original) and not isinstance(original, NativeRotary):
                native = NativeRotary(self._kernels, original)
                if self._rotates_alike(native):
                    setattr(place, _ROTARY, native)

    def _linear(self, linear: nn.Module, wanted: Format) -> NativeLinear:
        return NativeLinear(self._kernels, _packed(linear, wanted, self._memory.empty))

    def _fuse(self, parent: nn.Module, names: tuple[str, ...]) -> None:
        children = [child for child in (getattr(parent, name, None) for name in names) if _is_linear(child)]
        if len(children) < len(names):
            return
        weights: list[torch.Tensor] = [_weight(child) for child in children]
        biases: list[torch.Tensor] = [child.bias for child in children]
        if len({weight.shape[1] for weight in weights}) > 1 or len({bias is None for bias in biases}) > 1:
            return
        bias = None if biases[0] is None else torch.cat(biases)
        widths = [weight.shape[0] for weight in weights]
        fused = Fused(
            NativeLinear(self._kernels, pack(torch.cat(weights), bias, self._format, self._memory.empty)), widths
        )
        for index, name in enumerate(names):
            setattr(parent, name, Part(fused, index, widths[index], biases[index]))

    def _replace_mlp(self, parent: nn.Module) -> None:
        for name, child in list(parent.named_children()):
            linears = [inner for inner in (getattr(child, linear, None) for linear in _GATED) if _is_linear(inner)]
            others = {inner for inner, _ in child.named_children()} - {"act_fn"} - set(_GATED)
            if len(linears) == len(_GATED) and not others and isinstance(getattr(child, "act_fn", None), nn.Module):
                native = self._gated(child)
                if native is not None:
                    setattr(parent, name, native)

    def _gated(self, mlp: nn.Module) -> GatedMlp | None:
        """Its replacement, if there is one that computes the same."""
        act_fn, points = mlp.get_submodule("act_fn"), torch.linspace(-6, 6, 97)
        found = [act for act, function in _ACTIVATIONS.items() if _equal(act_fn, function, points)]
        if not found or not _takes_one(mlp):
            return None

        def packed(wanted: Format, empty: Empty) -> GatedMlp:
            gate, up, down = (_packed(getattr(mlp, name), wanted, empty) for name in _GATED)
            return GatedMlp(self._kernels, gate, up, NativeLinear(self._kernels, down), found[0])

        native = packed(self._format, self._memory.empty)
        inputs = self._trial(native.packed[0].inputs)
        expected = mlp(inputs)
        # Rounded weights hide small differences, so the first of a class is held against it in bf16 too.
        if self._format is not Format.BF16 and type(mlp) not in self._tried:
            self._tried[type(mlp)] = _alike(packed(Format.BF16, torch.empty)(inputs), expected)
        is_alike = self._tried.get(type(mlp), True) and _alike(native(inputs), expected, _TOLERANCE[self._format])
        return native if is_alike else None

    def _norm(self, norm: nn.Module) -> nn.Module:
        weight = getattr(norm, "weight", None)
        epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
        if [name for name, _ in norm.named_parameters()] != ["weight"] or not isinstance(epsilon, float):
            return norm
        if not isinstance(weight, torch.Tensor) or weight.dim() != 1 or weight.dtype is not torch.bfloat16:
            return norm
        if not _takes_one(norm):
            return norm
        inputs = self._trial(weight.shape[0]) + 1  # not without a mean, which another norm may take away
        natives = (NativeNorm(self._kernels, norm, epsilon, offset) for offset in (0.0, 1.0))
        expected = norm(inputs)
        return next((native for native in natives if _alike(native(inputs), expected)), norm)

    def _rotates_alike(self, native: NativeRotary) -> bool:
        heads, dim = (3, 2), 64
        queries, keys = (self._trial(dim * count).view(1, _TRIAL_ROWS, count, dim).transpose(1, 2) for count in heads)
        angle = self._trial(dim)
        try:
            expected = native.original(queries, keys, angle.cos(), angle.sin())
        except Exception:  # noqa: BLE001 - another function of the same name
            return False
        return all(map(_alike, native(queries, keys, angle.cos(), angle.sin()), expected))

    def _trial(self, width: int) -> torch.Tensor:
        return torch.randn((1, _TRIAL_ROWS, width), generator=self._random).bfloat16()


def fuse(
    model: PreTrainedModel, kernels: Kernels, quantization: str | None, begins: Callable[[nn.Module], None]
) -> None:
    """Replace what can be, layer by layer; ``begins`` is told of each layer before."""
    fuser = Fuser(kernels, quantization)
    with torch.inference_mode():
        fuser.replace_output(model)
        for layer in largest_list(model):
            begins(layer)
            fuser.replace_in(layer)
        fuser.replace_in(model)
        fuser.replace_rotary(model)
    settle(model)


def packed_bytes(model: nn.Module) -> int:
    """What the packed weights take, beside the parameters and buffers that are left."""
    return sum(weight.num_bytes for weight in _packed_weights(model))


def packed_products(model: PreTrainedModel) -> int:
    """Multiplications that a token of a prompt takes in the packed layers: the output layer sees the last one only."""
    output = model.get_output_embeddings()
    products = sum(weight.outputs * weight.inputs for weight in _packed_weights(model))
    return products - (output.packed.outputs * output.packed.inputs if isinstance(output, NativeLinear) else 0)


def _packed_weights(model: nn.Module) -> list[PackedWeight]:
    modules = list(model.modules())
    packed = [module.packed for module in modules if isinstance(module, NativeLinear)]
    return packed + [weight for module in modules if isinstance(module, GatedMlp) for weight in module.packed]


def _is_linear(module: object) -> TypeGuard[nn.Linear | Conv1D]:
    """Whether it computes what a linear layer does; subclasses may compute something else."""
    return (type(module) is nn.Linear or type(module) is Conv1D) and can_pack(_weight(module))


def _weight(module: nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)  # noqa: S101 - both kinds have it
    return weight.t() if type(module) is Conv1D else weight


def _packed(linear: nn.Module, wanted: Format, empty: Empty) -> PackedWeight:
    bias = linear.bias
    assert bias is None or isinstance(bias, torch.Tensor)  # noqa: S101 - both kinds have it
    return pack(_weight(linear), bias, wanted, empty)


def _equal(function: Callable[[torch.Tensor], torch.Tensor], other: Any, points: torch.Tensor) -> bool:
    return torch.allclose(function(points), other(points), rtol=0, atol=1e-5)  # tanh's GELU differs by 5e-4 from erf's


def _takes_one(module: nn.Module) -> bool:
    """Whether it is called with its inputs and nothing else."""
    return len(inspect.signature(module.forward).parameters) == 1


def _alike(outputs: torch.Tensor, expected: torch.Tensor, tolerance: float = _TOLERANCE[Format.BF16]) -> bool:
    if outputs.shape != expected.shape:
        return False
    difference = (outputs.float() - expected.float()).norm()
    return bool(difference <= tolerance * expected.float().norm())

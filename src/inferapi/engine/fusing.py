"""Where a model's modules give way to the native kernels: found by their patterns, each held against the original.

No list of architectures and no copy of a model's code: transformers' own forward pass goes on calling its modules.
What is replaced is what many architectures have alike: linear layers, those of the same inputs together (queries,
keys and values), gated feed-forward blocks, root mean square norms, rotary positions. A block or norm whose replacement
computes something else on a trial input stays as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from inferapi.engine.native.calls import Activation, Format
from inferapi.engine.native.formats import PackedWeight, can_pack, pack
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
_TOLERANCE = 0.02  # relative; rounding to bf16 gives 0.003
# A router's scores decide which experts compute at all; it is small, and stays exact.
_ROUTERS = frozenset({"gate", "router"})
_SAME_INPUTS = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
_GATED = ("gate_proj", "up_proj", "down_proj")


class Fuser:
    """Replaces the modules of one model, in place."""

    def __init__(self, kernels: Kernels, quantization: str | None) -> None:
        self._kernels = kernels
        self._format = _FORMATS[quantization]
        self._activations: dict[tuple[type, ...], Activation | None] = {}
        self._offsets: dict[type, float | None] = {}
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

    def replace_rotary(self, model: nn.Module) -> Callable[[], None]:
        """The function that the model's code turns queries and keys with; returns what puts the original back."""
        modules = {sys.modules[type(module).__module__] for module in model.modules()}
        places = [module for module in modules if callable(getattr(module, "apply_rotary_pos_emb", None))]
        originals = [(place, place.apply_rotary_pos_emb) for place in places]
        for place, original in originals:
            native = NativeRotary(self._kernels, getattr(original, "original", original))
            if self._rotates_alike(native):
                place.apply_rotary_pos_emb = native

        def restore() -> None:
            for place, original in originals:
                place.apply_rotary_pos_emb = getattr(original, "original", original)

        return restore

    def _linear(self, linear: nn.Module, wanted: Format) -> NativeLinear:
        return NativeLinear(self._kernels, _packed(linear, wanted))

    def _fuse(self, parent: nn.Module, names: tuple[str, ...]) -> None:
        children = [getattr(parent, name, None) for name in names]
        if not all(_is_linear(child) for child in children):
            return
        weights = [_weight(child) for child in children]
        biases = [child.bias for child in children]  # type: ignore[union-attr]
        if len({weight.shape[1] for weight in weights}) > 1 or len({bias is None for bias in biases}) > 1:
            return
        bias = None if biases[0] is None else torch.cat(biases)
        widths = [weight.shape[0] for weight in weights]
        fused = Fused(NativeLinear(self._kernels, pack(torch.cat(weights), bias, self._format)), widths)
        for index, name in enumerate(names):
            setattr(parent, name, Part(fused, index, widths[index], biases[index]))

    def _replace_mlp(self, parent: nn.Module) -> None:
        for name, child in list(parent.named_children()):
            linears = [getattr(child, linear, None) for linear in _GATED]
            if {inner for inner, _ in child.named_children()} - {"act_fn"} == set(_GATED) and all(
                map(_is_linear, linears)
            ):
                act = self._activation(child)
                if act is not None:
                    gate, up, down = (_packed(linear, self._format) for linear in linears)
                    setattr(parent, name, GatedMlp(self._kernels, gate, up, NativeLinear(self._kernels, down), act))

    def _activation(self, mlp: nn.Module) -> Activation | None:
        """What its gate goes through, found by trying; the same for all blocks of the class."""
        key = (type(mlp), type(getattr(mlp, "act_fn", None)))
        if key not in self._activations:
            gate, up, down = (_packed(getattr(mlp, name), Format.BF16) for name in _GATED)
            inputs = self._trial(gate.inputs)
            expected = mlp(inputs)
            found = [
                act
                for act in Activation
                if _alike(GatedMlp(self._kernels, gate, up, NativeLinear(self._kernels, down), act)(inputs), expected)
            ]
            self._activations[key] = found[0] if found else None
        return self._activations[key]

    def _norm(self, norm: nn.Module) -> nn.Module:
        weight = getattr(norm, "weight", None)
        epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
        if not isinstance(weight, torch.Tensor) or weight.dim() != 1 or not isinstance(epsilon, float):
            return norm
        if weight.dtype is not torch.bfloat16 or list(norm.children()):
            return norm
        if type(norm) not in self._offsets:
            inputs = self._trial(weight.shape[0])
            expected = norm(inputs)
            found = [
                offset
                for offset in (0.0, 1.0)
                if _alike(NativeNorm(self._kernels, weight, epsilon, offset)(inputs), expected)
            ]
            self._offsets[type(norm)] = found[0] if found else None
        offset = self._offsets[type(norm)]
        return norm if offset is None else NativeNorm(self._kernels, weight, epsilon, offset)

    def _rotates_alike(self, native: NativeRotary) -> bool:
        heads, dim = (3, 2), 64
        queries, keys = (
            self._trial(dim * count).view(1, _TRIAL_ROWS, count, dim).transpose(1, 2) for count in heads
        )
        angle = self._trial(dim)
        try:
            expected = native.original(queries, keys, angle.cos(), angle.sin())
        except Exception:  # noqa: BLE001 - another function of the same name
            return False
        return all(map(_alike, native(queries, keys, angle.cos(), angle.sin()), expected))

    def _trial(self, width: int) -> torch.Tensor:
        return torch.randn((1, _TRIAL_ROWS, width), generator=self._random).bfloat16()


def fuse(model: PreTrainedModel, kernels: Kernels, quantization: str | None, begins: Callable[[nn.Module], None]) -> None:
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


def _is_linear(module: object) -> bool:
    """Whether it computes what a linear layer does; subclasses may compute something else."""
    return (type(module) is nn.Linear or type(module) is Conv1D) and can_pack(_weight(module))  # type: ignore[arg-type]


def _weight(module: nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)  # noqa: S101 - both kinds have it
    return weight.t() if type(module) is Conv1D else weight


def _packed(linear: nn.Module, wanted: Format) -> PackedWeight:
    return pack(_weight(linear), linear.bias, wanted)  # type: ignore[arg-type]


def _alike(outputs: torch.Tensor, expected: torch.Tensor) -> bool:
    if outputs.shape != expected.shape:
        return False
    difference = (outputs.float() - expected.float()).norm()
    return bool(difference <= _TOLERANCE * expected.float().norm())

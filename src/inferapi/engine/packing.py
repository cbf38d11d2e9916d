"""Linear layers packed once for the CPU's matrix units.

oneDNN computes on weights in blocked layouts and, given plain ones, reorders them at every call. Packing at
load time makes bf16 layers 1.2 to 4 times faster at 1 to 32 rows, and takes no memory: the plain weight goes.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import nn
from transformers.pytorch_utils import Conv1D

_ROWS_HINT = 16  # the batch that the layout is chosen for; measured best overall from 1 to 32 rows
# oneDNN compiles kernels for every new number of rows, and keeps them: 0.6 MiB for each shape of a weight. Prompts
# come in all lengths, so theirs are rounded up; decoding, a row a request, is not.
_EXACT_ROWS = 32
_ROW_STEP = 16


class PackedLinear(nn.Module):
    """What ``nn.Linear`` computes: ``[*, I]`` to ``[*, O]``, on a packed ``[O, I]`` weight."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS_HINT)  # noqa: SLF001 - as inductor does; no public name
        self.bias = bias

    @property
    def weight(self) -> torch.Tensor:
        """The plain weight, for models that look at it; a copy."""
        plain: torch.Tensor = self.packed.to_dense()
        return plain

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Multiply; many rows with zeros below, to the next multiple of 16."""
        rows = inputs.numel() // self.in_features
        computed = computed_rows(rows)
        if computed != rows:
            inputs, shape = F.pad(inputs.reshape(rows, -1), (0, 0, 0, computed - rows)), inputs.shape
        output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self.packed, self.bias, "none", [], "")  # noqa: SLF001
        return output if computed == rows else output[:rows].view(*shape[:-1], self.out_features)


def computed_rows(rows: int) -> int:
    """How many rows are computed for so many: up to 32 as they are, then a multiple of 16."""
    return rows if rows <= _EXACT_ROWS else -(-rows // _ROW_STEP) * _ROW_STEP


def pack_linears(model: nn.Module) -> None:
    """Replace the model's linear layers in place, and let go of the weights file.

    Subclasses of ``nn.Linear`` stay as they are: they may compute something else. A weight that is tied to
    the embedding is packed as a copy.
    """
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                weight = child.weight
            elif type(child) is Conv1D:
                weight = child.weight.t()
            else:
                continue
            setattr(parent, name, PackedLinear(weight, child.bias))
    settle(model)


def largest_list(model: nn.Module) -> list[nn.Module]:
    """The decoder layers: the children of the list that holds most of the model."""
    lists: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=module_bytes).children()) if lists else []


def module_bytes(module: nn.Module) -> int:
    """What its parameters take."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.parameters())


def settle(model: nn.Module) -> None:
    """Let go of the weights file, once what is large in it was packed.

    As long as one tensor lies in the mapped file, all its pages count as ours.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    with suppress(AttributeError, OSError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)  # converted weights leave holes in the heap, as large as the model


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this CPU has packed kernels for ``dtype``."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype is torch.float32 or (dtype is torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001

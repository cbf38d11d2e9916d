"""A forward pass written down once and then repeated without the Python that made it: CUDA graphs for the CPU.

While a step of decodes runs through transformers' code, every native call is noted with its addresses, and every
operation of PyTorch between them. All tensors are kept, so that the addresses hold. Repeating it writes new tokens
and positions to where the old ones were and makes the same calls on them: the model's Python, hundreds of calls a
layer, costs nothing any more. Native calls that follow each other are one call, whose threads wait for each other
between the kernels only.

What depends on data beyond its tensors' contents (a choice, a number read out, a shape) cannot be repeated, and is
refused. A tape is made for a number of rows; with fewer, native calls compute the first rows only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inferapi.engine.native.calls import Add, Call, Operation
from inferapi.engine.native.kernels import Kernels

_DATA_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded}

_UNSET = {f"aten::{name}" for name in ("new_empty", "empty_like", "new_empty_strided")}  # whatever they hold is nothing


class NotRepeatableError(Exception):
    """Why a forward pass cannot be written down."""


class Tape:
    """The steps of one pass, and what it comes to. Not thread-safe: the tensors are its own."""

    def __init__(self, kernels: Kernels, steps: Sequence[Any], outputs: torch.Tensor, alive: Sequence[Any]) -> None:
        self._kernels, self._library = kernels, kernels.library
        self._outputs = outputs
        self._alive = alive
        self._steps: list[tuple[ctypes.Array[Any], int] | Callable[[], None]] = []
        native: list[Call] = []
        for step in [*steps, None]:
            if isinstance(step, Call):
                native.append(step)
                continue
            if native:
                self._steps.append((self._library.list_of(native), len(native)))
                native = []
            if step is not None:
                self._steps.append(step)

    def repeat(self, rows: int) -> torch.Tensor:
        """The outputs for what is in the inputs now; the next call overwrites them."""
        threads = self._kernels.threads
        for step in self._steps:
            if isinstance(step, tuple):
                self._library.run(*step, rows, threads)
            else:
                step()
        return self._outputs


def record(
    kernels: Kernels, forward: Callable[[], torch.Tensor], inputs: Sequence[torch.Tensor], rows: int, used_rows: int
) -> Tape:
    """Run ``forward`` and write it down.

    Args:
        inputs: the tensors that change from one repetition to the next.
        rows: of all tensors that the native calls work on.
        used_rows: how many of them the native calls compute this time.

    Raises:
        NotRepeatableError: it does something that only its own code can decide.
    """
    recorder = _Recorder(kernels, inputs, rows, used_rows)
    kernels.redirect = recorder.native
    try:
        with recorder:
            outputs = forward()
    finally:
        kernels.redirect = None
    return Tape(kernels, recorder.steps, outputs, (recorder.steps, recorder.alive, inputs))


class _Recorder(TorchDispatchMode):  # type: ignore[misc]
    """Sees every operation that reaches PyTorch's kernels."""

    def __init__(self, kernels: Kernels, inputs: Sequence[torch.Tensor], rows: int, used_rows: int) -> None:
        super().__init__()
        self._kernels = kernels
        self._rows, self._used_rows = rows, used_rows
        self.steps: list[Call | Callable[[], None]] = []
        self.alive: list[Any] = []
        # Memory whose contents follow from the inputs; what does not is computed once and stays.
        self._changing = {_memory(tensor) for tensor in inputs}

    def native(self, call: Call, rows: int, alive: tuple[Any, ...]) -> None:
        """Make a native call, and note it down."""
        if rows != self._rows:
            raise NotRepeatableError(f"a kernel computes {rows} rows, not {self._rows}")
        library = self._kernels.library
        library.run(library.list_of([call]), 1, self._used_rows, self._kernels.threads)
        self.steps.append(call)
        self.alive.append(alive)
        self._changing |= {_memory(tensor) for tensor in alive if isinstance(tensor, torch.Tensor)}

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _DATA_DEPENDENT & set(func.tags) and not _picks_rows(func, args):
            raise NotRepeatableError(f"the pass depends on data ({func.name()})")
        outputs = func(*args, **kwargs)
        self.alive.append(outputs)
        given = [tensor for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)]
        made = [tensor for tensor in tree_leaves(outputs) if isinstance(tensor, torch.Tensor)]
        if func.name() in _UNSET or not any(_memory(tensor) in self._changing for tensor in given):
            return outputs
        if func._schema.is_mutable:  # noqa: SLF001 - nothing public tells
            self._changing |= {_memory(tensor) for tensor in given}
            self.steps.append(lambda: func(*args, **kwargs))
        elif not {_memory(tensor) for tensor in made} <= {_memory(tensor) for tensor in given}:  # no view
            self._changing |= {_memory(tensor) for tensor in made}
            self.steps.append(self._as_native(func, args, kwargs, outputs) or _again(func, args, kwargs, made))
            self.alive.append(args)
        return outputs

    def _as_native(self, func: Any, args: Any, kwargs: Any, output: Any) -> Call | None:
        """A residual sum is between kernels in every layer: as one of them it costs no way through PyTorch."""
        if func is not torch.ops.aten.add.Tensor or kwargs or len(args) != 2:  # noqa: PLR2004
            return None
        left, right = args
        size = output.shape[-1]
        if not all(
            isinstance(tensor, torch.Tensor)
            and tensor.dtype is torch.bfloat16
            and tensor.shape == output.shape
            and tensor.is_contiguous()
            and tensor.numel() == self._rows * size
            for tensor in (left, right, output)
        ):
            return None
        return Add(Operation.ADD, left.data_ptr(), right.data_ptr(), output.data_ptr(), size)


def _picks_rows(func: Any, args: Any) -> bool:
    """Whether an index is one of numbers, whose shape is known, and not one of true and false."""
    if func is not torch.ops.aten.index.Tensor:
        return False
    return all(index is None or index.dtype not in {torch.bool, torch.uint8} for index in args[1])


def _again(func: Any, args: Any, kwargs: Any, made: Sequence[torch.Tensor]) -> Callable[[], None]:
    def repeat() -> None:
        outputs = func(*args, **kwargs)
        fresh = (tensor for tensor in tree_leaves(outputs) if isinstance(tensor, torch.Tensor))
        for kept, now in zip(made, fresh, strict=True):
            kept.copy_(now)

    return repeat


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]  # noqa: SLF001 - one address a storage

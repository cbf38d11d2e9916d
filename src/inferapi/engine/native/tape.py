"""A forward pass written down once and then repeated without the Python that made it: CUDA graphs for the CPU.

While a step of decodes runs through transformers' code, every native call is noted with its addresses, and every
operation of PyTorch between them. All tensors are kept, so that the addresses hold. Repeating it writes new tokens
and positions to where the old ones were and makes the same calls on them: the model's Python, hundreds of calls a
layer, costs nothing any more. Native calls that follow each other are one call, whose threads wait for each other
between the kernels only.

What depends on data beyond its tensors' contents (a choice, a number read out, a shape) cannot be repeated, and is
refused. A tape is made for a number of tokens, and one of outputs; with fewer, native calls compute the first rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
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


@dataclass(frozen=True, slots=True)
class _Native:
    """A native call, and of what it computes a row: a token (0) or an output (1)."""

    call: Call
    kind: int


_Step = _Native | Callable[[], None]


class Tape:
    """The steps of one pass, and what it comes to. Not thread-safe: the tensors are its own."""

    def __init__(self, kernels: Kernels, steps: Sequence[_Step], outputs: torch.Tensor, alive: Sequence[Any]) -> None:
        self._kernels, self._library = kernels, kernels.library
        self._outputs = outputs
        self._alive = steps, alive
        self._steps: list[tuple[ctypes.Array[Any], int, int] | Callable[[], None]] = []
        for kind, group in groupby(steps, lambda step: step.kind if isinstance(step, _Native) else None):
            members = list(group)
            calls = [step.call for step in members if isinstance(step, _Native)]
            if kind is not None:
                self._steps.append((self._library.list_of(calls), len(calls), kind))
            self._steps += [step for step in members if not isinstance(step, _Native)]

    def repeat(self, tokens: int, outputs: int) -> torch.Tensor:
        """The outputs for what is in the inputs now, of so many tokens; the next call overwrites them."""
        threads = self._kernels.threads
        for step in self._steps:
            if isinstance(step, tuple):
                calls, count, kind = step
                rows = outputs if kind else tokens
                if rows:
                    self._library.run(calls, count, rows, threads)
            else:
                step()
        return self._outputs[:outputs]


@dataclass(frozen=True, slots=True)
class Size:
    """What a tape is made for, and how much of that the pass uses by which it is made. The two numbers differ."""

    tokens: int
    outputs: int
    used_tokens: int
    used_outputs: int


def record(kernels: Kernels, forward: Callable[[], torch.Tensor], inputs: Sequence[torch.Tensor], size: Size) -> Tape:
    """Run ``forward`` and write it down.

    Args:
        kernels: whose calls are noted.
        forward: the pass; what it returns is the tape's output, a row each.
        inputs: the tensors that change from one repetition to the next.
        size: of the tensors.

    Raises:
        NotRepeatableError: it does something that only its own code can decide.
    """
    recorder = _Recorder(kernels, inputs, size)
    kernels.redirect = recorder.native
    try:
        with recorder:
            outputs = forward()
    finally:
        kernels.redirect = None
    return Tape(kernels, recorder.steps, outputs, (recorder.alive, inputs))


class _Recorder(TorchDispatchMode):
    """Sees every operation that reaches PyTorch's kernels."""

    def __init__(self, kernels: Kernels, inputs: Sequence[torch.Tensor], size: Size) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._kernels = kernels
        self._size = size
        self.steps: list[_Step] = []
        self.alive: list[Any] = []
        # Memory whose contents follow from the inputs; what does not is computed once and stays.
        self._changing = {_memory(tensor) for tensor in inputs}

    def native(self, call: Call, rows: int, alive: tuple[Any, ...]) -> None:
        """Make a native call, and note it down."""
        size = self._size
        if rows not in {size.tokens, size.outputs}:
            raise NotRepeatableError(f"a kernel computes {rows} rows, not {size.tokens}")
        kind = int(rows == size.outputs)
        used = size.used_outputs if kind else size.used_tokens
        if used:
            library = self._kernels.library
            library.run(library.list_of([call]), 1, used, self._kernels.threads)
        self.steps.append(_Native(call, kind))
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

    def _as_native(self, func: Any, args: Any, kwargs: Any, output: Any) -> _Native | None:
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
            and tensor.numel() == self._size.tokens * size
            for tensor in (left, right, output)
        ):
            return None
        return _Native(Add(Operation.ADD, left.data_ptr(), right.data_ptr(), output.data_ptr(), size), 0)


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

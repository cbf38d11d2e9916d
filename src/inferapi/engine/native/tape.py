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
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inferapi.engine.native.calls import Add, Call, Operation
from inferapi.engine.native.kernels import Kernels

_DATA_DEPENDENT = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_READS = {"aten::is_nonzero", "aten::where", "aten::nonzero_numpy"}  # untagged, where composite operations come whole
_READ_FUNCTIONS = {torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.__array__}  # these pass all operations by
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
        with recorder, _Reads(recorder):
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
        # Memory by what is in it: what follows from the inputs, what this pass made, what noted steps have read.
        self._changing = {_memory(tensor) for tensor in inputs}
        self._made: set[int] = set()
        self._read: set[int] = set()

    def native(self, call: Call, rows: int, alive: tuple[Any, ...]) -> None:
        """Make a native call, and note it down."""
        size = self._size
        if rows not in {size.tokens, size.outputs}:
            raise NotRepeatableError(f"a kernel computes {rows} rows, not {size.tokens}")
        kind = int(rows == size.outputs)
        used = size.used_outputs if kind else size.used_tokens
        if used:
            self._kernels.compute(call, used)
        self.steps.append(_Native(call, kind))
        self.alive.append(alive)
        memories = _memories(alive)
        self._changing |= memories
        self._read |= memories

    def is_changing(self, tensors: Any) -> bool:
        """Whether one of them follows from the inputs."""
        return not self._changing.isdisjoint(_memories(tensors))

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = _memories((args, kwargs))
        is_changing = not self._changing.isdisjoint(given)
        is_random = torch.Tag.nondeterministic_seeded in func.tags and not _is_idle_dropout(func, args)
        if is_random or (is_changing and _depends_on_data(func, args)):
            raise NotRepeatableError(f"the pass depends on data ({func.name()})")
        if func._schema.is_mutable and func is not torch.ops.aten.detach_.default:  # noqa: SLF001 - nothing public tells
            self._note_writing(func, args, kwargs, is_changing=is_changing)
        outputs = func(*args, **kwargs)
        self.alive.append((args, outputs))
        made = _memories(outputs)
        self._made |= made - given
        if is_changing and made - given and func.name() not in _UNSET:  # no view, and nothing in place
            self._changing |= made
            self._read |= given
            self.steps.append(self._as_native(func, args, kwargs, outputs) or _again(func, args, kwargs, outputs))
        return outputs

    def _note_writing(self, func: Any, args: Any, kwargs: Any, *, is_changing: bool) -> None:
        """What is written to must be at every repetition what it was at the first."""
        for argument, value in _arguments(func, args, kwargs):
            if argument.alias_info is None or not argument.alias_info.is_write or not isinstance(value, torch.Tensor):
                continue
            memory = _memory(value)
            if memory in self._changing:
                continue
            if memory not in self._made or (memory in self._read and not is_changing):
                raise NotRepeatableError(f"the pass keeps something ({func.name()})")
            if is_changing:
                whole = torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage())
                self.steps.insert(0, _Restored(whole, whole.clone()))
                self._changing.add(memory)
        if is_changing:
            self.steps.append(lambda: func(*args, **kwargs))

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


class _Reads(TorchFunctionMode):
    """Refuses functions that read a tensor's numbers where no operation shows it."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READ_FUNCTIONS and self._recorder.is_changing(args):
            raise NotRepeatableError(f"the pass depends on data ({func.__name__})")
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, slots=True)
class _Restored:
    """A tensor that the pass made without the inputs and then wrote to: at first it is again what it was."""

    tensor: torch.Tensor
    contents: torch.Tensor

    def __call__(self) -> None:
        self.tensor.copy_(self.contents)


def _is_idle_dropout(func: Any, args: Any) -> bool:
    """Whether it is a dropout outside of training, which passes its input on."""
    return func is torch.ops.aten.dropout.default and not args[2]


def _depends_on_data(func: Any, args: Any) -> bool:
    if func.name() in _READS:
        return True
    if func is torch.ops.aten.index.Tensor:  # by numbers its shape is known, by true and false it is not
        return any(index is not None and index.dtype in {torch.bool, torch.uint8} for index in args[1])
    return not _DATA_DEPENDENT.isdisjoint(func.tags)


def _again(func: Any, args: Any, kwargs: Any, outputs: Any) -> Callable[[], None]:
    made = _tensors(outputs)

    def repeat() -> None:
        for kept, now in zip(made, _tensors(func(*args, **kwargs)), strict=True):
            kept.copy_(now)

    return repeat


def _arguments(func: Any, args: Any, kwargs: Any) -> list[tuple[Any, Any]]:
    """What the operation says of each argument, and the argument."""
    named = {argument.name: argument for argument in func._schema.arguments}  # noqa: SLF001 - nothing public tells
    return [*zip(named.values(), args, strict=False), *((named[name], value) for name, value in kwargs.items())]


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _memories(tree: Any) -> set[int]:
    return {_memory(tensor) for tensor in _tensors(tree)}


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]  # noqa: SLF001 - one address a storage

"""The structures of ``calls.hpp``, field by field, and the door to the compiled library.

Shapes are in ``calls.hpp``; pointers are ``data_ptr()`` of tensors that whoever makes a call keeps alive.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

_POINTER, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class Operation(IntEnum):
    """Which kernel a call is for."""

    LINEAR = 0
    GATED = 1
    NORM = 2
    ROTATE = 3
    WRITE = 4
    ATTEND = 5
    ADD = 6


class Format(IntEnum):
    """How the numbers of a packed weight are stored."""

    BF16 = 0
    INT8 = 1
    INT4 = 2


class Activation(IntEnum):
    """What a gate goes through."""

    SILU = 0
    GELU_TANH = 1


def _fields(**types: Any) -> list[tuple[str, Any]]:
    return list(types.items())


class Call(ctypes.Structure):
    """What all calls begin with."""

    _fields_ = _fields(operation=_LONG)


class Matrix(ctypes.Structure):
    """A packed weight ``[outputs, inputs]``."""

    _fields_ = _fields(
        format=_LONG,
        outputs=_LONG,
        inputs=_LONG,
        numbers=_POINTER,
        scales=_POINTER,
        minima=_POINTER,
        bias=_POINTER,
    )


class Linear(Call):
    """``output[row] = weight @ input[row] + bias``."""

    _fields_ = _fields(
        weight=Matrix, input=_POINTER, input_stride=_LONG, output=_POINTER, output_stride=_LONG, scratch=_POINTER
    )


class Gated(Call):
    """``output[row] = activation(gate @ input[row]) * (up @ input[row])``."""

    _fields_ = _fields(
        gate=Matrix,
        up=Matrix,
        input=_POINTER,
        input_stride=_LONG,
        output=_POINTER,
        output_stride=_LONG,
        activation=_LONG,
        scratch=_POINTER,
    )


class Norm(Call):
    """``repeat`` vectors of ``size`` a row over their root mean square, times ``weight + offset``."""

    _fields_ = _fields(
        input=_POINTER,
        row_stride=_LONG,
        repeat_stride=_LONG,
        output=_POINTER,
        weight=_POINTER,
        repeat=_LONG,
        size=_LONG,
        epsilon=_FLOAT,
        offset=_FLOAT,
    )


class Rotate(Call):
    """Rotary positions of queries and keys."""

    _fields_ = _fields(
        queries=_POINTER,
        keys=_POINTER,
        cosines=_POINTER,
        sines=_POINTER,
        query_row=_LONG,
        query_head=_LONG,
        key_row=_LONG,
        key_head=_LONG,
        angle_row=_LONG,
        rotated_queries=_POINTER,
        rotated_keys=_POINTER,
        query_heads=_LONG,
        key_heads=_LONG,
        dim=_LONG,
    )


class Write(Call):
    """Keys and values to their places in the cache."""

    _fields_ = _fields(
        keys=_POINTER,
        values=_POINTER,
        key_row=_LONG,
        key_head=_LONG,
        value_row=_LONG,
        value_head=_LONG,
        cached_keys=_POINTER,
        cached_values=_POINTER,
        blocks=_POINTER,
        offsets=_POINTER,
        heads=_LONG,
        key_dim=_LONG,
        value_dim=_LONG,
        block_tokens=_LONG,
    )


class Attend(Call):
    """Every token against the cached tokens ``first <= position < length`` of its request."""

    _fields_ = _fields(
        queries=_POINTER,
        query_row=_LONG,
        query_head=_LONG,
        output=_POINTER,
        cached_keys=_POINTER,
        cached_values=_POINTER,
        table=_POINTER,
        table_starts=_POINTER,
        firsts=_POINTER,
        lengths=_POINTER,
        tiles=_POINTER,
        tile_count=_POINTER,
        heads=_LONG,
        group=_LONG,
        key_dim=_LONG,
        value_dim=_LONG,
        scale=_FLOAT,
        scratch=_POINTER,
        scratch_floats=_LONG,
    )


class Add(Call):
    """The sum of two rows."""

    _fields_ = _fields(left=_POINTER, right=_POINTER, output=_POINTER, size=_LONG)


class Library:
    """The compiled kernels."""

    def __init__(self, path: str) -> None:
        self._run = ctypes.CDLL(path).inferapi_run
        self._run.argtypes = (_POINTER, _LONG, _LONG, _LONG)
        self._run.restype = None

    def run(self, calls: ctypes.Array[Any], count: int, rows: int, threads: int) -> None:
        """Compute ``count`` calls, one after the other, on the first ``rows`` rows; the interpreter is let go of."""
        self._run(calls, count, rows, threads)

    @staticmethod
    def list_of(calls: Sequence[Call]) -> ctypes.Array[Any]:
        """Calls as ``run`` takes them; they must outlive it."""
        return (_POINTER * len(calls))(*(ctypes.addressof(call) for call in calls))

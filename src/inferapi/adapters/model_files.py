"""Files of a model that nobody vouches for: JSON, and the headers of safetensors."""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from stat import S_ISREG
from typing import Any, BinaryIO

from inferapi.domain.errors import ModelInvalid

Json = dict[str, Any]

MAX_JSON_BYTES = 64 * 1024**2
"""No JSON file of a model may be larger."""
_HEADER_LENGTH_BYTES = 8  # a safetensors file begins with the length of its header
_MAX_HEADER_BYTES = 100 * 1000**2  # safetensors' own limit
_HEADER_LENGTH = struct.Struct("<Q")
_MOST_DIMS = 16
_MOST_BYTES = 2**63
_DTYPE_BITS = (
    dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8)
    | dict.fromkeys(("I16", "U16", "F16", "BF16"), 16)
    | dict.fromkeys(("I32", "U32", "F32"), 32)
    | dict.fromkeys(("I64", "U64", "F64", "C64"), 64)
)  # one that is not here, the reader of the weights knows or refuses
_BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


@dataclass(frozen=True, slots=True)
class Tensor:
    """One line of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    stored_bytes: int


def read_json(path: Path, model: str) -> Json:
    """A JSON object of a model's folder.

    Raises:
        ModelInvalid: it is missing, no regular file, too large or no JSON object.
    """
    try:
        with open_regular(path) as file:
            content = file.read(MAX_JSON_BYTES + 1)
        if len(content) > MAX_JSON_BYTES:
            raise ModelInvalid(model=model, problem=f"{path.name} is too large")
        value = json.loads(content.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelInvalid(model=model, problem=f"{path.name} is missing or broken") from error
    if not isinstance(value, dict):
        raise ModelInvalid(model=model, problem=f"{path.name} is not an object")
    return value


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read; one whose opening or reading would wait, like a named pipe or a device, is refused.

    Raises:
        OSError: it is none, or cannot be read.
    """
    if not S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "no regular file")
    # Not blocking: what it is may have changed meanwhile.
    file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: PTH123, SIM115
    if not S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "no regular file")
    return file


def read_header(path: Path, model: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, checked against its size.

    Raises:
        ModelInvalid: the file is truncated or garbage.
    """
    try:
        with open_regular(path) as file:
            file_bytes = os.fstat(file.fileno()).st_size
            start = file.read(_HEADER_LENGTH_BYTES)
            header = file.read(_header_bytes(start, path.name, model))
    except OSError as error:
        raise _broken_weights(path.name, model) from error
    return _parse_header(header, file_bytes, path.name, model)


def _header_bytes(start: bytes, name: str, model: str) -> int:
    """How long the header of a safetensors file is, from its first ``_HEADER_LENGTH_BYTES``.

    Raises:
        ModelInvalid: longer than any, or not there.
    """
    if len(start) < _HEADER_LENGTH_BYTES:
        raise _broken_weights(name, model)
    (length,) = _HEADER_LENGTH.unpack(start[:_HEADER_LENGTH_BYTES])
    if length > _MAX_HEADER_BYTES:
        raise _broken_weights(name, model)
    return int(length)


def _parse_header(header: bytes, file_bytes: int, name: str, model: str) -> dict[str, Tensor]:
    """The tensors that the header of a safetensors file names, by the format's own rules.

    The tensors lie one behind the other, without holes and without overlaps, up to the file's end
    (https://github.com/huggingface/safetensors, Format).

    Raises:
        ModelInvalid: it breaks a rule, or the file is not of that size.
    """
    try:
        entries = json.loads(header, object_pairs_hook=_without_duplicates)
        entries.pop("__metadata__", None)
        tensors = {tensor: parse_tensor(entry) for tensor, entry in entries.items()}
        end = 0
        for start, stop in sorted((entry["data_offsets"][0], entry["data_offsets"][1]) for entry in entries.values()):
            if start != end:
                raise ValueError(start, end)
            end = stop
        complete = file_bytes == _HEADER_LENGTH_BYTES + len(header) + end
    except _BROKEN as error:
        raise _broken_weights(name, model) from error
    if not complete:
        raise _broken_weights(name, model)
    return tensors


def parse_tensor(entry: Mapping[str, Any]) -> Tensor:
    """One entry of a header."""
    start, end = (_size(offset) for offset in entry["data_offsets"])
    shape = tuple(_size(length) for length in entry["shape"])
    dtype = str(entry["dtype"])
    if start > end or len(shape) > _MOST_DIMS:
        raise ValueError(start, end, shape)
    if dtype in _DTYPE_BITS and prod(shape) * _DTYPE_BITS[dtype] != (end - start) * 8:
        raise ValueError(dtype, shape)
    return Tensor(dtype, shape, end - start)


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _MOST_BYTES:
        raise ValueError(type(value))
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> Json:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError(len(pairs))  # which of them counts, readers disagree on
    return entries


def _broken_weights(name: str, model: str) -> ModelInvalid:
    return ModelInvalid(model=model, problem=f"{name} is truncated or no safetensors file")

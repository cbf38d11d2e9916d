"""What a model is, from its config and the headers of its weights: nothing is executed, no weight is read.

A hostile config is refused here, before transformers sees it: one that names code of its own, or sets
transformers' private switches (CVE-2026-4372 was such a switch).
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from inferapi.domain.errors import ModelInvalid, RemoteCodeRefused
from inferapi.domain.model import LayerShape, ModelProfile, ModelRef

Json = dict[str, Any]

_MATRIX_DIMS = 2
_TOLD_KEY_CHARS = 60
_MAX_JSON_BYTES = 64 * 1024**2
_MAX_HEADER_BYTES = 100 * 1000**2  # safetensors' own limit
_HEADER_LENGTH = struct.Struct("<Q")
_MOST_LAYERS = 10_000
_BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError, struct.error)
_PROJECTION = re.compile(r"\.(\d+)\..*\b([kv])_proj\.weight$")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One line of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    stored_bytes: int


def read_json(path: Path, model: str) -> Json:
    """A JSON object of a model's folder.

    Raises:
        ModelInvalid: it is missing, too large or no JSON object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ModelInvalid(model=model, problem=f"{path.name} is too large")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelInvalid(model=model, problem=f"{path.name} is missing or broken") from error
    if not isinstance(value, dict):
        raise ModelInvalid(model=model, problem=f"{path.name} is not an object")
    return value


def read_header(path: Path, model: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, checked against its size.

    Raises:
        ModelInvalid: the file is truncated or garbage.
    """
    broken = ModelInvalid(model=model, problem=f"{path.name} is truncated or no safetensors file")
    try:
        with path.open("rb") as file:
            (length,) = _HEADER_LENGTH.unpack(file.read(_HEADER_LENGTH.size))
            if length > _MAX_HEADER_BYTES:
                raise broken
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = {name: parse_tensor(entry) for name, entry in header.items()}
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        complete = path.stat().st_size == _HEADER_LENGTH.size + length + end
    except _BROKEN as error:
        raise broken from error
    if not complete:
        raise broken
    return tensors


def parse_tensor(entry: Mapping[str, Any]) -> Tensor:
    """One entry of a header."""
    start, end = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(size) for size in entry["shape"])
    if not 0 <= start <= end or min(shape, default=0) < 0:
        raise ValueError(start, end, shape)
    return Tensor(str(entry["dtype"]), shape, end - start)


def refuse_hostile(config: Json, model: str) -> None:
    """Refuse a config that asks for code of its own or for private switches of transformers.

    Raises:
        RemoteCodeRefused: at the first such key, at whatever depth.
    """
    for key in _keys(config):
        if key in {"auto_map", "custom_pipelines"} or key.endswith("_internal"):
            raise RemoteCodeRefused(model=model, key=key[:_TOLD_KEY_CHARS])


def profile(ref: ModelRef, config: Json, tensors: Mapping[str, Tensor]) -> ModelProfile:
    """Put together what is known.

    Raises:
        ModelInvalid: this is not a decoder-only language model with weights.
    """
    model = str(ref)
    if config.get("is_encoder_decoder"):
        raise ModelInvalid(model=model, problem="it is an encoder-decoder, not a decoder-only language model")
    if not tensors:
        raise ModelInvalid(model=model, problem="its weights hold no tensors")
    text = config.get("text_config")
    text = text if isinstance(text, dict) else config
    by_dtype: dict[str, int] = {}
    for tensor in tensors.values():
        by_dtype[tensor.dtype] = by_dtype.get(tensor.dtype, 0) + prod(tensor.shape)
    try:
        hidden = _integer(text, "hidden_size", "n_embd", "d_model")
        return ModelProfile(
            ref=ref,
            architecture=str((config.get("architectures") or ["unknown"])[0]),
            parameters_by_dtype=by_dtype,
            stored_bytes=sum(tensor.stored_bytes for tensor in tensors.values()),
            layers=tuple(_layers(text, hidden, tensors)),
            hidden_size=hidden,
            intermediate_size=_integer(
                text, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", default=4 * hidden
            ),
            vocab_size=_integer(text, "vocab_size"),
            context_window_tokens=_integer(
                text,
                "max_position_embeddings",
                "n_positions",
                "n_ctx",
                "max_sequence_length",
                "seq_length",
                default=8192,
            ),
            prequantized="quantization_config" in config,
        )
    except _BROKEN as error:
        raise ModelInvalid(model=model, problem="its config is not that of a language model") from error


def _layers(config: Json, hidden: int, tensors: Mapping[str, Tensor]) -> Iterator[LayerShape]:
    """The KV shape of each layer: from the projections' weights, else by the config's formula."""
    num_layers = _integer(config, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    if num_layers > _MOST_LAYERS:
        raise ValueError(num_layers)
    heads = _integer(config, "num_attention_heads", "n_head", "n_heads", "num_heads", default=1)
    windows = config.get("sliding_window") or None
    types = config.get("layer_types") or []
    measured: dict[int, dict[str, int]] = {}
    for name, tensor in tensors.items():
        if (found := _PROJECTION.search(name)) and len(tensor.shape) == _MATRIX_DIMS:
            measured.setdefault(int(found[1]), {})[found[2]] = tensor.shape[0]
    for index in range(num_layers):
        window = windows if index < len(types) and types[index] == "sliding_attention" else None
        found_here = measured.get(index, {})
        if "kv_lora_rank" in config:  # multi-head latent attention: the cache holds the expanded heads
            key_dim = _integer(config, "qk_nope_head_dim") + _integer(config, "qk_rope_head_dim")
            yield LayerShape(heads, key_dim, _integer(config, "v_head_dim"), window)
        elif found_here.keys() == {"k", "v"} and "quantization_config" not in config:
            yield LayerShape(1, found_here["k"], found_here["v"], window)
        else:
            head_dim = _integer(config, "head_dim", default=hidden // heads)
            default_kv_heads = 1 if config.get("multi_query") else heads
            yield LayerShape(
                _integer(config, "num_key_value_heads", "num_kv_heads", default=default_kv_heads),
                head_dim,
                head_dim,
                window,
            )


def _integer(config: Json, *names: str, default: int | None = None) -> int:
    """The first of these keys that is set: architectures name the same thing differently."""
    value = next((config[name] for name in names if config.get(name) is not None), default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise ValueError(names[0])
    return value


def _keys(value: Any) -> Iterator[str]:
    """Every key at every depth; without recursion, which a deep enough config would exhaust."""
    pending = [value]
    while pending:
        inner = pending.pop()
        if isinstance(inner, dict):
            yield from map(str, inner)
            pending += inner.values()
        elif isinstance(inner, list):
            pending += inner

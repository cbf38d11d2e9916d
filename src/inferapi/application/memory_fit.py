"""Bytes a model needs, from its profile: pure functions.

An estimate errs on the large side by little: what is measured after loading is in ``/status``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from inferapi.domain.model import (
    KV_BLOCK_TOKENS,
    PREFILL_CHUNK_TOKENS,
    Device,
    DeviceKind,
    FitReport,
    LoadOptions,
    ModelProfile,
)

BYTES_BY_DTYPE = {"bfloat16": 2, "float16": 2, "float32": 4}

_MIB = 1024**2
_LONG_CONTEXT_TOKENS = 8192  # one request may always be this long, if its model can
_TYPICAL_REQUEST_TOKENS = 1024  # and so long are all of a full batch together, on average
_SHORTEST_CONTEXT_TOKENS = 2048  # below this a model is not worth loading
_STORED_BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8}
_FLOATS = {"F64", "F32", "F16", "BF16"}
_WORKING_FLOOR_BYTES = {DeviceKind.CPU: 96 * _MIB, DeviceKind.CUDA: 512 * _MIB}
_RESERVE_FLOOR_BYTES = 512 * _MIB
_RESERVE_SHARE = 0.03
_SMALLEST_USEFUL_PARAMETERS = 10_000_000


@dataclass(frozen=True, slots=True)
class Room:
    """Memory that a model may use, in bytes: ``available`` now, ``total`` on an empty machine.

    ``reserve_bytes`` of the device are kept for others, and are in neither.
    """

    total_bytes: int
    available_bytes: int
    reserve_bytes: int


def target_dtype(options: LoadOptions, device: Device) -> str:
    """The dtype that ``auto`` stands for on this device: bf16 where the processor computes in it."""
    if options.dtype != "auto":
        return options.dtype
    return "bfloat16" if device.supports_bfloat16 else "float32"


def room_for(
    device: Device, *, budget_bytes: int | None, resident_bytes: int, reclaimable_bytes: int, unwritten_bytes: int = 0
) -> Room:
    """What a new model may use.

    Args:
        device: what the probe reports.
        budget_bytes: the operator's ceiling on all models together, if any.
        resident_bytes: memory of the models that are loaded.
        unwritten_bytes: what the models that stay were promised and have not taken yet.
        reclaimable_bytes: the part of it that unloading would give back.
    """
    reserve = max(_RESERVE_FLOOR_BYTES, int(_RESERVE_SHARE * device.total_bytes))
    total, available = device.total_bytes - reserve, device.free_bytes + reclaimable_bytes - unwritten_bytes - reserve
    if budget_bytes is not None:
        total = min(total, budget_bytes)
        available = min(available, budget_bytes - resident_bytes + reclaimable_bytes - unwritten_bytes)
    return Room(total, max(min(available, total), 0), reserve)


def fit(profile: ModelProfile, options: LoadOptions, device: Device, room: Room, *, max_batch: int) -> FitReport:
    """What the model needs against what there is.

    The KV cache is what a full batch wants; where that does not fit it shrinks, down to one short context.
    """
    dtype = target_dtype(options, device)
    context = profile.context_window_tokens
    most = min(max(min(context, _LONG_CONTEXT_TOKENS), max_batch * _TYPICAL_REQUEST_TOKENS), max_batch * context)
    least = min(context, _SHORTEST_CONTEXT_TOKENS)
    report = FitReport(
        model=str(profile.ref),
        device=device.kind,
        dtype=dtype,
        weights_bytes=weights_bytes(profile, dtype),
        kv_cache_bytes=0,
        kv_cache_tokens=0,
        working_bytes=working_bytes(profile, dtype, device.kind, max_batch=max_batch),
        overhead_bytes=device.overhead_bytes,
        reserve_bytes=room.reserve_bytes,
        total_bytes=room.total_bytes,
        available_bytes=room.available_bytes,
    )
    spare = room.available_bytes - report.needed_bytes
    per_token = kv_bytes_per_token(profile, dtype)
    blocks, least_blocks = (-(-tokens // KV_BLOCK_TOKENS) for tokens in (most, least))
    if per_token and blocks * KV_BLOCK_TOKENS * per_token > spare:
        blocks = max(least_blocks, spare // (per_token * KV_BLOCK_TOKENS))
    tokens = blocks * KV_BLOCK_TOKENS
    return replace(report, kv_cache_tokens=tokens, kv_cache_bytes=tokens * per_token)


def weights_bytes(profile: ModelProfile, dtype: str) -> int:
    """Floating-point tensors at the target dtype, others as stored; packed ones as stored altogether."""
    if profile.prequantized:
        return profile.stored_bytes
    width = BYTES_BY_DTYPE[dtype]
    return sum(
        count * (width if stored in _FLOATS else _STORED_BITS.get(stored, 32) // 8)
        for stored, count in profile.parameters_by_dtype.items()
    )


def kv_bytes_per_token(profile: ModelProfile, dtype: str) -> int:
    """Keys and values of one token in all layers. Sliding layers count in full: the cache keeps all of them."""
    return sum(layer.elements_per_token for layer in profile.layers) * BYTES_BY_DTYPE[dtype]


def working_bytes(profile: ModelProfile, dtype: str, device: DeviceKind, *, max_batch: int) -> int:
    """What a step needs beside weights and cache: activations of a chunk, logits and their copies."""
    chunk = (
        PREFILL_CHUNK_TOKENS[device] * (4 * profile.hidden_size + 3 * profile.intermediate_size) * BYTES_BY_DTYPE[dtype]
    )
    logits = 4 * max_batch * profile.vocab_size * 4  # float32: scaled, softmax, cumulative
    # On the CPU the output layer is packed, also where it is tied to the embedding: a copy of it.
    packed = profile.vocab_size * profile.hidden_size * BYTES_BY_DTYPE[dtype] if device is DeviceKind.CPU else 0
    return max(_WORKING_FLOOR_BYTES[device], chunk + logits) + packed


def hint(report: FitReport, profile: ModelProfile) -> str:
    """What would fit instead."""
    spare = report.available_bytes
    for dtype in ("bfloat16", "float16"):
        smaller = weights_bytes(profile, dtype) + report.working_bytes + report.overhead_bytes
        least_cache = _SHORTEST_CONTEXT_TOKENS * kv_bytes_per_token(profile, dtype)
        if report.dtype == "float32" and not profile.prequantized and smaller + least_cache <= spare:
            return f"It would fit with dtype {dtype}."
    parameters = max(spare - report.working_bytes - report.overhead_bytes, 0) / BYTES_BY_DTYPE[report.dtype] * 0.8
    if parameters < _SMALLEST_USEFUL_PARAMETERS:
        return "No model of a useful size would fit."
    return f"A model of about {parameters / 1e9:.2g} billion parameters would fit in {report.dtype} on {report.device}."

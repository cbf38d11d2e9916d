"""Bytes a model needs, from its profile: pure functions.

An estimate errs on the large side by little. ``benchmarks/memory_fit.py`` holds it against real workers, and measured
every constant here that is called measured; docs/benchmarks/memory-fit.md has the figures. ``FitReport`` says what
the parts are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from inferapi.application.step_memory import kernels_bytes, step_bytes, trial_bytes
from inferapi.domain.model import KV_BLOCK_TOKENS, Alternative, Device, DeviceKind, FitReport, LoadOptions, ModelProfile

BYTES_BY_DTYPE = {"bfloat16": 2, "float16": 2, "float32": 4}

_LONG_CONTEXT_TOKENS = 8192  # one request may always be this long, if its model can
_TYPICAL_REQUEST_TOKENS = 1024  # and so long are all of a full batch together, on average
_SHORTEST_CONTEXT_TOKENS = 2048  # below this a model is not worth loading
_STORED_BITS = (
    dict.fromkeys(("BOOL", "U8", "I8"), 8)
    | dict.fromkeys(("I16", "U16"), 16)
    | dict.fromkeys(("I32", "U32"), 32)
    | dict.fromkeys(("I64", "U64", "C64"), 64)
)
_FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0"}
_PACKED_DTYPES = {"bfloat16", "float32"}  # that the CPU's packed kernels know, see engine/packing.py
_TOKENIZER_ENTRY_BYTES = 600  # measured: what a token's strings, merges and table entries take in the Rust tokenizer
_RESERVE_FLOOR_BYTES = 512 * 1024**2
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


def fit(
    profile: ModelProfile, options: LoadOptions, device: Device, room: Room, *, max_batch: int, correction: float = 1.0
) -> FitReport:
    """What the model needs against what there is.

    The KV cache is what a full batch wants; where that does not fit it shrinks, down to one short context.
    ``correction`` is measured against estimated of earlier loads: it multiplies what is taken once it is loaded.
    """
    dtype = target_dtype(options, device)
    weights = round(correction * (weights_bytes(profile, dtype) + output_copy_bytes(profile, dtype, device.kind)))
    overhead = round(correction * (device.overhead_bytes + _beside_bytes(profile, dtype, device.kind)))
    empty = FitReport(
        model=str(profile.ref),
        device=device.kind,
        dtype=dtype,
        weights_bytes=weights,
        kv_cache_bytes=0,
        kv_cache_tokens=0,
        working_bytes=0,
        overhead_bytes=overhead,
        reserve_bytes=room.reserve_bytes,
        total_bytes=room.total_bytes,
        available_bytes=room.available_bytes,
        correction=correction,
    )

    def of(blocks: int) -> FitReport:
        tokens = blocks * KV_BLOCK_TOKENS
        cache = kv_cache_bytes(profile, dtype, tokens)
        return replace(
            empty,
            kv_cache_tokens=tokens,
            kv_cache_bytes=cache,
            loaded_bytes=weights + (overhead if device.kind is DeviceKind.CPU else 0 if profile.sequential else cache),
            working_bytes=working_bytes(profile, dtype, device.kind, max_batch=max_batch, kv_cache_tokens=tokens),
        )

    least, most = _blocks_wanted(profile, max_batch)
    if of(most).fits:
        return of(most)
    while least < most - 1:  # more blocks never take less: look for the last that fits
        middle = (least + most) // 2
        least, most = (middle, most) if of(middle).fits else (least, middle)
    return of(least)


def alternatives(
    profile: ModelProfile, options: LoadOptions, device: Device, room: Room, *, max_batch: int, correction: float = 1.0
) -> tuple[Alternative, ...]:
    """Other dtypes that fit in the room and need less than the one asked for, or hold more tokens: most tokens first.

    There is none for packed weights: their size does not follow the dtype. ``correction`` is that of the dtype asked
    for; a model that takes more than it should in one dtype is likely to do so in the other.
    """
    asked = fit(profile, options, device, room, max_batch=max_batch, correction=correction)
    if profile.prequantized:
        return ()
    found = [
        fit(profile, replace(options, dtype=dtype), device, room, max_batch=max_batch, correction=correction)
        for dtype in ("bfloat16", "float16")  # equally small; float16 overflows where bf16 does not
        if dtype != asked.dtype
    ]
    better = [
        report
        for report in found
        if report.fits and (report.needed_bytes < asked.needed_bytes or report.kv_cache_tokens > asked.kv_cache_tokens)
    ]
    better.sort(key=lambda report: -report.kv_cache_tokens)
    return tuple(
        Alternative(report.dtype, options.quantization, report.kv_cache_tokens, report.needed_bytes)
        for report in better
    )


def hint(report: FitReport, profile: ModelProfile) -> str:
    """What would fit instead."""
    spare = report.available_bytes - report.working_bytes - report.overhead_bytes
    for dtype in ("bfloat16", "float16"):
        smaller = weights_bytes(profile, dtype) + output_copy_bytes(profile, dtype, report.device)
        least_cache = kv_cache_bytes(profile, dtype, _SHORTEST_CONTEXT_TOKENS)
        if report.dtype == "float32" and not profile.prequantized and smaller + least_cache <= spare:
            return f"It would fit with dtype {dtype}."
    parameters = max(spare, 0) / BYTES_BY_DTYPE[report.dtype] * 0.8
    if parameters < _SMALLEST_USEFUL_PARAMETERS:
        return "No model of a useful size would fit."
    return f"A model of about {parameters / 1e9:.2g} billion parameters would fit in {report.dtype} on {report.device}."


def weights_bytes(profile: ModelProfile, dtype: str) -> int:
    """Floating-point tensors at the target dtype, others as stored; packed ones as stored altogether."""
    if profile.prequantized:
        return profile.stored_bytes
    width = BYTES_BY_DTYPE[dtype]
    return sum(
        count * (width if stored in _FLOATS else _STORED_BITS.get(stored, 32) // 8)
        for stored, count in profile.parameters_by_dtype.items()
    )


def output_copy_bytes(profile: ModelProfile, dtype: str, device: DeviceKind) -> int:
    """The CPU computes on packed weights: an output layer that is tied to the embedding is packed as a copy."""
    if device is not DeviceKind.CPU or not profile.ties_output or dtype not in _PACKED_DTYPES:
        return 0
    return profile.vocab_size * profile.hidden_size * BYTES_BY_DTYPE[dtype]


def kv_cache_bytes(profile: ModelProfile, dtype: str, tokens: int) -> int:
    """Keys, values and states. Sliding layers count in full, since the paged cache keeps all of them.

    A sequential model's own cache keeps no more than their window.
    """
    width = BYTES_BY_DTYPE[dtype]
    return width * sum(
        layer.state_elements
        + layer.elements_per_token * (min(tokens, layer.window_tokens or tokens) if profile.sequential else tokens)
        for layer in profile.layers
    )


def working_bytes(
    profile: ModelProfile, dtype: str, device: DeviceKind, *, max_batch: int, kv_cache_tokens: int
) -> int:
    """What steps take beside weights and cache, once full batches and long prompts have run."""
    width = BYTES_BY_DTYPE[dtype]
    step = step_bytes(profile, width, device, max_batch=max_batch, kv_cache_tokens=kv_cache_tokens)
    return step + kernels_bytes(profile, dtype, device)


def _beside_bytes(profile: ModelProfile, dtype: str, device: DeviceKind) -> int:
    """What a loaded model takes beside its weights and the bare process, in host memory."""
    if device is not DeviceKind.CPU:
        return 0
    return profile.vocab_size * _TOKENIZER_ENTRY_BYTES + trial_bytes(profile, dtype)


def _blocks_wanted(profile: ModelProfile, max_batch: int) -> tuple[int, int]:
    """The fewest and the most blocks of KV cache that make sense."""
    context = profile.context_window_tokens
    most = min(max(min(context, _LONG_CONTEXT_TOKENS), max_batch * _TYPICAL_REQUEST_TOKENS), max_batch * context)
    if profile.sequential:  # one request at a time
        most = min(most, context)
    least = min(context, _SHORTEST_CONTEXT_TOKENS)
    return -(-least // KV_BLOCK_TOKENS), -(-most // KV_BLOCK_TOKENS)

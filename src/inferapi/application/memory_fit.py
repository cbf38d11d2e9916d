"""Bytes a model needs, from its profile: pure functions.

An estimate errs on the large side by little. ``benchmarks/memory_fit.py`` holds it against real workers, and measured
every constant here that is called measured; docs/benchmarks/memory-fit.md has the figures. ``FitReport`` says what
the parts are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from inferapi.application.step_memory import (
    is_taped,
    kernels_bytes,
    sampling_bytes,
    step_bytes,
    tape_bytes,
    trial_bytes,
)
from inferapi.application.weight_memory import BYTES_BY_DTYPE, conversion_bytes, output_copy_bytes, weights_bytes
from inferapi.domain.model import KV_BLOCK_TOKENS, Device, DeviceKind, FitReport, LoadOptions, ModelProfile

_LONG_CONTEXT_TOKENS = 8192  # one request may always be this long, if its model can
_TYPICAL_REQUEST_TOKENS = 1024  # and so long are all of a full batch together, on average
SHORTEST_CONTEXT_TOKENS = 2048
"""Below this a model is not worth loading."""
_TOKENIZER_ENTRY_BYTES = 600  # measured: what a token's strings, merges and table entries take in the Rust tokenizer
_RESERVE_FLOOR_BYTES = 512 * 1024**2
_RESERVE_SHARE = 0.03


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
    options = replace(options, dtype=dtype)
    weights = weights_bytes(profile, options, device) + output_copy_bytes(profile, options, device)
    weights, overhead = (
        round(correction * part) for part in (weights, device.overhead_bytes + _beside_bytes(profile, options, device))
    )
    converted = conversion_bytes(profile, options, device)  # gone before the cache is written and steps are computed
    empty = FitReport(
        model=str(profile.ref),
        device=device.kind,
        dtype=dtype,
        quantization=options.quantization,
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
        working = working_bytes(profile, options, device, max_batch=max_batch, kv_cache_tokens=tokens)
        return replace(
            empty,
            kv_cache_tokens=tokens,
            kv_cache_bytes=cache,
            loaded_bytes=weights + (overhead if device.kind is DeviceKind.CPU else 0 if profile.sequential else cache),
            working_bytes=max(working, converted - weights - cache),
        )

    least, most = _blocks_wanted(profile, max_batch)
    if of(most).fits:
        return of(most)
    while least < most - 1:  # more blocks never take less: look for the last that fits
        middle = (least + most) // 2
        least, most = (middle, most) if of(middle).fits else (least, middle)
    return of(least)


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
    profile: ModelProfile, options: LoadOptions, device: Device, *, max_batch: int, kv_cache_tokens: int
) -> int:
    """What steps take beside weights and cache, once full batches and long prompts have run.

    The dtype of ``options`` is never ``auto`` here.
    """
    width = BYTES_BY_DTYPE[options.dtype]
    if is_taped(profile, options, device):
        step = sampling_bytes(profile, width, max_batch=max_batch) + tape_bytes(profile, options, device)
    else:
        step = step_bytes(profile, width, device.kind, max_batch=max_batch, kv_cache_tokens=kv_cache_tokens)
    return step + kernels_bytes(profile, options, device)


def _beside_bytes(profile: ModelProfile, options: LoadOptions, device: Device) -> int:
    """What a loaded model takes beside its weights and the bare process, in host memory."""
    if device.kind is not DeviceKind.CPU:
        return 0
    return profile.vocab_size * _TOKENIZER_ENTRY_BYTES + trial_bytes(profile, options, device)


def _blocks_wanted(profile: ModelProfile, max_batch: int) -> tuple[int, int]:
    """The fewest and the most blocks of KV cache that make sense."""
    context = profile.context_window_tokens
    most = min(max(min(context, _LONG_CONTEXT_TOKENS), max_batch * _TYPICAL_REQUEST_TOKENS), max_batch * context)
    if profile.sequential:  # one request at a time
        most = min(most, context)
    least = min(context, SHORTEST_CONTEXT_TOKENS)
    return -(-least // KV_BLOCK_TOKENS), -(-most // KV_BLOCK_TOKENS)

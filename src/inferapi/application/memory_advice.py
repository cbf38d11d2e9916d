"""What would fit instead of what was asked for: other dtypes, then narrower weights. Pure functions."""

from __future__ import annotations

from collections.abc import Iterator

from inferapi.application.memory_fit import Room, fit
from inferapi.application.weight_memory import BYTES_BY_DTYPE, quantization_problem
from inferapi.domain.model import Alternative, Device, DeviceKind, FitReport, LoadOptions, ModelProfile, Quantization

_SMALLEST_USEFUL_PARAMETERS = 10_000_000
_NARROW_DTYPES = ("bfloat16", "float16")  # equally small; float16 overflows where bf16 does not


def alternatives(
    profile: ModelProfile, options: LoadOptions, device: Device, room: Room, *, max_batch: int, correction: float = 1.0
) -> tuple[Alternative, ...]:
    """Other ways that fit in the room and need less than the one asked for, or hold more tokens.

    Other dtypes come first, most tokens first; then int8, then int4. There is none for weights that are stored
    quantized: their size follows neither. ``correction`` is that of the way asked for; a model that takes more than
    it should in one way is likely to do so in the other.
    """
    asked = fit(profile, options, device, room, max_batch=max_batch, correction=correction)
    dtypes, quantizations = (
        [
            report
            for way in ways
            if (report := fit(profile, way, device, room, max_batch=max_batch, correction=correction)).fits
            and (report.needed_bytes < asked.needed_bytes or report.kv_cache_tokens > asked.kv_cache_tokens)
        ]
        for ways in (_other_dtypes(profile, asked, device), _other_quantizations(profile, asked, device))
    )
    dtypes.sort(key=lambda report: -report.kv_cache_tokens)
    return tuple(
        Alternative(report.dtype, report.quantization, report.kv_cache_tokens, report.needed_bytes)
        for report in (*dtypes, *quantizations)
    )


def hint(report: FitReport, profile: ModelProfile, device: Device, *, max_batch: int) -> str:
    """What would fit instead of what ``report`` refuses, in a sentence: the least change that is enough."""
    room = Room(report.total_bytes, report.available_bytes, report.reserve_bytes)
    dtypes = _other_dtypes(profile, report, device) if report.dtype == "float32" else ()
    for way in (*dtypes, *_other_quantizations(profile, report, device)):
        if fit(profile, way, device, room, max_batch=max_batch, correction=report.correction).fits:
            changed = [f"dtype {way.dtype}"] if way.dtype != report.dtype else []
            changed += [f"quantization {way.quantization}"] if way.quantization is not report.quantization else []
            return f"It would fit with {' and '.join(changed)}."
    spare = report.available_bytes - report.working_bytes - report.overhead_bytes
    parameters = max(spare, 0) / BYTES_BY_DTYPE[report.dtype] * 0.8
    if parameters < _SMALLEST_USEFUL_PARAMETERS:
        return "No model of a useful size would fit."
    return f"A model of about {parameters / 1e9:.2g} billion parameters would fit in {report.dtype} on {report.device}."


def _other_dtypes(profile: ModelProfile, asked: FitReport, device: Device) -> Iterator[LoadOptions]:
    for dtype in _NARROW_DTYPES:
        way = LoadOptions(dtype, asked.quantization)
        if dtype != asked.dtype and not profile.prequantized and quantization_problem(way, device) is None:
            yield way


def _other_quantizations(profile: ModelProfile, asked: FitReport, device: Device) -> Iterator[LoadOptions]:
    """With what stays unquantized in a narrow dtype: that costs less than quantizing the rest."""
    narrow = _NARROW_DTYPES[0 if device.supports_bfloat16 else 1]
    keeps_dtype = asked.dtype != "float32" and device.kind is not DeviceKind.CPU
    for quantization in Quantization:
        way = LoadOptions(asked.dtype if keeps_dtype else narrow, quantization)
        is_other = quantization is not asked.quantization and not profile.prequantized
        if is_other and quantization_problem(way, device) is None:
            yield way

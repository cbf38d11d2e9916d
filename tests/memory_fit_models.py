"""Models as the fit check sees them, and a machine to put them on."""

from __future__ import annotations

from dataclasses import replace

from fakes import GIB, MIB, make_device, make_profile
from inferapi.application.memory_fit import Room, fit, kv_cache_bytes, working_bytes
from inferapi.domain.model import DeviceKind, LayerShape, LinearShape, LoadOptions

SMOLLM2 = make_profile(
    "HuggingFaceTB/SmolLM2-135M-Instruct",
    parameters_by_dtype={"BF16": 134_515_008},
    stored_bytes=269_030_016,
    layers=(LayerShape(3, 64, 64),) * 30,
    hidden_size=576,
    intermediate_size=1536,
    vocab_size=49_152,
    context_window_tokens=8192,
    ties_output=True,
    attention_heads=9,
    matrix_shapes=5,
    linears=(
        LinearShape(576, 576, 60),
        LinearShape(192, 576, 60),
        LinearShape(1536, 576, 60),
        LinearShape(576, 1536, 30),
    ),
)
GPT2 = make_profile(
    "gpt2",
    parameters_by_dtype={"F32": 124_439_808},
    stored_bytes=497_759_232,
    layers=(LayerShape(12, 64, 64),) * 12,
    hidden_size=768,
    intermediate_size=3072,
    vocab_size=50_257,
    context_window_tokens=1024,
)
AUTO = LoadOptions()
RESERVE = 512 * MIB


def room(available_bytes: int) -> Room:
    return Room(total_bytes=16 * GIB - RESERVE, available_bytes=available_bytes, reserve_bytes=RESERVE)


def needs(profile, *, kv_tokens: int, options=AUTO, max_batch=32, device=None) -> int:
    """Room that the model fills to the last byte with a KV cache of that many tokens."""
    device = device or DEVICE
    report = fit(profile, options, device, room(16 * GIB), max_batch=max_batch)
    asked = LoadOptions(report.dtype, report.quantization)
    working = working_bytes(profile, asked, device, max_batch=max_batch, kv_cache_tokens=kv_tokens)
    return report.loaded_bytes + working + kv_cache_bytes(profile, report.dtype, kv_tokens)


DEVICE = make_device()
NATIVE = make_device(native_kernels=True)
ON_GPU = replace(DEVICE, kind=DeviceKind.CUDA)

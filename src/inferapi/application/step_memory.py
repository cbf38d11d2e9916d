"""Bytes that computing takes, beside weights and KV cache: pure functions of a profile.

The constants are measured by ``benchmarks/memory_fit.py`` unless they say otherwise.
"""

from __future__ import annotations

from inferapi.application.weight_memory import uses_native_kernels
from inferapi.domain.model import (
    KV_BLOCK_TOKENS,
    MOST_TAPE_OUTPUTS,
    PREFILL_CHUNK_TOKENS,
    TAPE_TOKENS,
    Device,
    DeviceKind,
    LoadOptions,
    ModelProfile,
)

_MIB = 1024**2
_FLOAT32_BYTES, _BF16_BYTES = 4, 2
_HIDDEN_COPIES, _INNER_COPIES = 6, 4  # rows alive at once: residual, norm, queries, keys, …; gate, up, product, …
_SCORE_COPIES = 5  # scaled, biased or capped, softmax, its cast, and the product
_LOGIT_COPIES = 4  # float32: two that the sampler keeps, and two more for wide filters
# oneDNN compiles kernels for every shape of a weight and every number of rows, and keeps them: 0.5 MiB each.
# The trial at the load meets a handful of row counts, full batches of long prompts about twenty. engine/packing.py
# bounds how many there can be, 64 in all. Hundreds of requests of mixed lengths meet about half of them, 3 to 7 MiB a
# shape more than is promised here (benchmarks/memory_growth.py): that comes out of the reserve, and is measured.
# A batch spreads over experts in ever new row counts, whose bf16 kernels are kept where float32 needs none.
_TRIAL_KERNELS_BYTES = {"float32": 2.4 * _MIB, "bfloat16": 2.6 * _MIB, "float16": 2.4 * _MIB}
_KERNELS_BYTES = {"float32": 9.8 * _MIB, "bfloat16": 11.5 * _MIB, "float16": 9.8 * _MIB}
_TRIAL_EXPERT_KERNELS_BYTES = {"bfloat16": 10 * _MIB}
_EXPERT_KERNELS_BYTES = {"bfloat16": 125 * _MIB}
# Kernels compiled for this CPU compute any number of rows: they are there after the load, and serving adds little,
# whatever the model. What experts compute is still the work of oneDNN.
_TRIAL_NATIVE_BYTES, _NATIVE_BYTES = 2 * _MIB, 6 * _MIB
# Steps are repeated from tapes, one for each of some numbers of tokens, that keep all tensors of the pass.
_TAPE_TOKENS = sum(TAPE_TOKENS)
_TAPE_OUTPUTS = sum(min(tokens + 1, MOST_TAPE_OUTPUTS) for tokens in TAPE_TOKENS)
_TAPE_HIDDEN_COPIES, _TAPE_INNER_COPIES = 9, 2  # of a layer: norms, queries, keys, …, sums; gated or plain product
_SEQUENTIAL_KERNELS_BYTES = 0.5 * _MIB  # one prompt at a time, one row afterwards
_CUDA_FLOOR_BYTES = 512 * _MIB  # cuBLAS workspaces and the caching allocator's blocks; not measured yet


def step_bytes(profile: ModelProfile, width: int, device: DeviceKind, *, max_batch: int, kv_cache_tokens: int) -> int:
    """The largest step: a chunk of a prompt of the longest context, beside a full batch.

    ``width`` is the bytes of a number in the model's dtype; ``kv_cache_tokens`` bound the longest context.
    """
    longest = min(profile.context_window_tokens, kv_cache_tokens)
    alone = profile.sequential  # a sequential model computes a whole prompt at once, and keeps one layer's scan
    rows = longest if alone else PREFILL_CHUNK_TOKENS[device] + max_batch
    activations = rows * (_HIDDEN_COPIES * profile.hidden_size + _INNER_COPIES * profile.intermediate_size) * width
    attends = any(layer.elements_per_token for layer in profile.layers)
    mask = min(rows, longest) * longest * (1 + width) if attends else 0  # of booleans, then of numbers to add
    scores = _SCORE_COPIES * profile.attention_heads * min(rows, longest) * longest * _FLOAT32_BYTES
    scan = rows * profile.scan_elements_per_token * _FLOAT32_BYTES
    logits = sampling_bytes(profile, width, max_batch=1 if alone else max_batch)
    step = activations + mask + (scores if profile.scores_in_full else 0) + scan + logits
    if not alone:
        step += _paged_attention_bytes(profile, width, longest, kv_cache_tokens)
    return max(step, _CUDA_FLOOR_BYTES) if device is DeviceKind.CUDA else step


def sampling_bytes(profile: ModelProfile, width: int, *, max_batch: int) -> int:
    """What the sampler does with a full batch's logits; all that a step from tape takes beside the tape."""
    return max_batch * profile.vocab_size * (_LOGIT_COPIES * _FLOAT32_BYTES + width)


def kernels_bytes(profile: ModelProfile, options: LoadOptions, device: Device) -> int:
    """Kernels that the CPU's library compiles while it serves, beyond those of the trial at the load."""
    if device.kind is not DeviceKind.CPU:
        return 0
    native, shapes = uses_native_kernels(options, device), profile.matrix_shapes
    if profile.sequential:
        return _NATIVE_BYTES if native else round(shapes * _SEQUENTIAL_KERNELS_BYTES)
    experts = profile.expert_shapes * _EXPERT_KERNELS_BYTES.get(options.dtype, 0)
    return round((_NATIVE_BYTES if native else shapes * _KERNELS_BYTES[options.dtype]) + experts)


def tape_bytes(profile: ModelProfile, options: LoadOptions, device: Device) -> int:
    """What tapes keep, once there is one for every number of tokens."""
    if not is_taped(profile, options, device):
        return 0
    in_layer = _TAPE_HIDDEN_COPIES * profile.hidden_size + _TAPE_INNER_COPIES * profile.intermediate_size
    return (_TAPE_TOKENS * len(profile.layers) * in_layer + _TAPE_OUTPUTS * profile.vocab_size) * _BF16_BYTES


def is_taped(profile: ModelProfile, options: LoadOptions, device: Device) -> bool:
    """Whether native kernels attend, and steps are repeated from tapes."""
    return uses_native_kernels(options, device) and not profile.sequential and not profile.scores_in_full


def trial_bytes(profile: ModelProfile, options: LoadOptions, device: Device) -> int:
    """Kernels that are there once a model is loaded on a CPU: those that its trial compiles, or the native ones.

    A model that cannot run in a batch has no trial.
    """
    native = uses_native_kernels(options, device)
    if profile.sequential:
        return _TRIAL_NATIVE_BYTES if native else 0
    experts = profile.expert_shapes * _TRIAL_EXPERT_KERNELS_BYTES.get(options.dtype, 0)
    linears = _TRIAL_NATIVE_BYTES if native else profile.matrix_shapes * _TRIAL_KERNELS_BYTES[options.dtype]
    return round(linears + experts)


def _paged_attention_bytes(profile: ModelProfile, width: int, longest: int, kv_cache_tokens: int) -> int:
    """One layer's gathered keys and values of a long prompt, and the scores and parts of all decoded blocks."""
    widest = max((layer.elements_per_token for layer in profile.layers), default=0)
    head_dim = profile.hidden_size // profile.attention_heads
    blocks = kv_cache_tokens // KV_BLOCK_TOKENS
    gathered = 2 * longest * widest * width
    return gathered + blocks * profile.attention_heads * 3 * (KV_BLOCK_TOKENS + head_dim) * _FLOAT32_BYTES

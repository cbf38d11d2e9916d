"""A model: its name, how to load it, what it needs, what it became."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from inferapi.domain.errors import ModelNameInvalid

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_NAME = re.compile(rf"(?P<name>(?:{_PART}/)?{_PART})(?:@(?P<revision>[A-Za-z0-9][A-Za-z0-9._-]{{0,63}}))?")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A hub id, ``name`` or ``org/name``, and the revision that is meant."""

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str, revision: str | None = None) -> ModelRef:
        """Read ``org/name@revision``.

        Raises:
            ModelNameInvalid: it is a path, a URL or otherwise no hub id.
        """
        match = _NAME.fullmatch(text if revision is None else f"{text}@{revision}")
        if match is None or ".." in text or "--" in text:
            raise ModelNameInvalid
        return cls(match["name"], match["revision"])

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a model.

    Attributes:
        dtype: ``auto``, ``bfloat16``, ``float16`` or ``float32``.
        quantization: none, or the name of a weight format.
    """

    dtype: str = "auto"
    quantization: str | None = None


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one decoder layer keeps for one token: ``kv_heads`` keys and values of these widths.

    Attributes:
        window_tokens: how far back a sliding layer looks; ``None`` is the whole context.
    """

    kv_heads: int
    key_dim: int
    value_dim: int
    window_tokens: int | None = None

    @property
    def elements_per_token(self) -> int:
        """Numbers kept for one token."""
        return self.kv_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """What is known of a model before any weight is read.

    Attributes:
        architecture: the class that transformers builds, from the config.
        parameters_by_dtype: numbers stored, by safetensors dtype (``BF16``, ``F32``, …), tied weights once.
        stored_bytes: bytes of the weight files' tensors.
        layers: the KV shapes, one a decoder layer, as the config tells them.
        context_window_tokens: the longest sequence the model was made for.
        prequantized: the stored tensors are packed; their size does not follow the dtype.
    """

    ref: ModelRef
    architecture: str
    parameters_by_dtype: Mapping[str, int]
    stored_bytes: int
    layers: tuple[LayerShape, ...]
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    context_window_tokens: int
    prequantized: bool = False


class DeviceKind(StrEnum):
    """Where a model can live."""

    CUDA = "cuda"
    CPU = "cpu"


KV_BLOCK_TOKENS = 64
"""The KV cache is handed out in blocks of so many tokens."""

PREFILL_CHUNK_TOKENS = {DeviceKind.CPU: 512, DeviceKind.CUDA: 2048}
"""The most prompt tokens that one step computes."""


@dataclass(frozen=True, slots=True)
class Device:
    """Memory that models may use, and what the processor there is good at.

    Attributes:
        count: how many GPUs the figures add up; 1 for a CPU.
        overhead_bytes: what one worker process takes before any weight.
    """

    kind: DeviceKind
    name: str
    count: int
    total_bytes: int
    free_bytes: int
    supports_bfloat16: bool
    overhead_bytes: int


@dataclass(frozen=True, slots=True)
class FitReport:
    """What a model needs against what there is, in bytes; what ``dry_run`` answers.

    ``total_bytes`` and ``available_bytes`` are for models: ``reserve_bytes`` of the device are kept for others.
    """

    model: str
    device: DeviceKind
    dtype: str
    weights_bytes: int
    kv_cache_bytes: int
    kv_cache_tokens: int
    working_bytes: int
    overhead_bytes: int
    reserve_bytes: int
    total_bytes: int
    available_bytes: int

    @property
    def needed_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.kv_cache_bytes + self.working_bytes + self.overhead_bytes

    @property
    def fits(self) -> bool:
        """There is room now."""
        return self.needed_bytes <= self.available_bytes

    @property
    def can_ever_fit(self) -> bool:
        """There would be room on an empty machine."""
        return self.needed_bytes <= self.total_bytes


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Everything a worker process must know to load a model: all decided before it starts.

    ``promised_bytes`` is what it may grow to, by the estimate that admitted it.
    """

    model: str
    path: str
    device: DeviceKind
    device_count: int
    dtype: str
    kv_cache_tokens: int
    max_batch: int
    max_queue: int
    promised_bytes: int = 0
    threads: int | None = None


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What a loaded model became; ``/status`` and the log show it.

    Attributes:
        attention_reason: why this kernel and not a faster one.
        batching: ``continuous``, or ``sequential``: one request at a time.
        batching_reason: why a model runs sequentially; empty otherwise.
        weights_bytes: parameters and buffers, tied ones once.
        memory_bytes: growth of the worker by loading (GPU memory on a GPU, resident memory elsewhere).
    """

    model: str
    device: str
    dtype: str
    attention: str
    attention_reason: str
    batching: str
    batching_reason: str
    context_window_tokens: int
    kv_cache_tokens: int
    weights_bytes: int
    memory_bytes: int
    load_s: float


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy an engine is."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage_ratio: float = 0.0


class ModelState(StrEnum):
    """Where a model is in its life."""

    UNLOADED = "unloaded"
    RESOLVING = "resolving"
    DOWNLOADING = "downloading"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    UNLOADING = "unloading"


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One line of ``/status``.

    Attributes:
        last_used_s: wall-clock time of the last release, seconds since the epoch.
        unloads_in_s: seconds to the idle unload; ``None`` while in use, or never.
    """

    name: str
    state: ModelState
    in_flight: int = 0
    queued: int = 0
    last_used_s: float | None = None
    unloads_in_s: float | None = None
    facts: EngineFacts | None = field(default=None)

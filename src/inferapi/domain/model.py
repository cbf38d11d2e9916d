"""A model: its name, how to load it, what it needs, what it became."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
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


class Quantization(StrEnum):
    """The formats that a load can bring the weights of linear layers into."""

    INT8 = "int8"
    INT4 = "int4"


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a model.

    Attributes:
        dtype: ``auto``, ``bfloat16``, ``float16`` or ``float32``.
        quantization: the format of linear layers' weights in memory; none keeps them in ``dtype``.
    """

    dtype: str = "auto"
    quantization: Quantization | None = None


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one decoder layer keeps for one token: ``kv_heads`` keys and values of these widths.

    Attributes:
        window_tokens: how far back a sliding layer looks; ``None`` is the whole context.
        state_elements: numbers kept for a whole sequence, however long (linear attention, state spaces, convolutions).
    """

    kv_heads: int
    key_dim: int
    value_dim: int
    window_tokens: int | None = None
    state_elements: int = 0

    @property
    def elements_per_token(self) -> int:
        """Numbers kept for one token."""
        return self.kv_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True, slots=True)
class LinearShape:
    """The weights ``[outputs, inputs]`` of ``count`` linear layers."""

    outputs: int
    inputs: int
    count: int = 1

    @property
    def parameters(self) -> int:
        """Numbers in all of them."""
        return self.count * self.outputs * self.inputs


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
        ties_output: the output layer is the embedding's tensor once more.
        sequential: its config says that it cannot run in a batch; others may turn out so when they are loaded.
        scores_in_full: its attention holds the scores of all heads at once (soft caps, sinks, position biases).
        attention_heads: query heads of a layer.
        matrix_shapes: how many different shapes its linear layers have; those of experts are ``expert_shapes``.
        linears: the weights that a quantization changes, by shape: floating-point ones, no experts, no output layer.
        output: the output layer's own weight; ``None`` where it is tied.
        scan_elements_per_token: numbers that one recurrent layer holds for each token of a prompt while it scans it.
        commit: the hub's commit that ``ref`` stands for; ``None`` for a folder of this machine.
        download_bytes: what is not on this machine yet.
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
    ties_output: bool = False
    sequential: bool = False
    scores_in_full: bool = False
    attention_heads: int = 1
    matrix_shapes: int = 1
    expert_shapes: int = 0
    linears: tuple[LinearShape, ...] = ()
    output: LinearShape | None = None
    scan_elements_per_token: int = 0
    commit: str | None = None
    download_bytes: int = 0


class DeviceKind(StrEnum):
    """Where a model can live."""

    CUDA = "cuda"
    CPU = "cpu"


KV_BLOCK_TOKENS = 64
"""The KV cache is handed out in blocks of so many tokens."""

PREFILL_CHUNK_TOKENS = {DeviceKind.CPU: 512, DeviceKind.CUDA: 2048}
"""The most prompt tokens that one step computes."""

TAPE_TOKENS = (1, 16, 128)
"""Numbers of tokens that native steps are written down for; the last is the most that one computes. One of fewer tokens
takes the next larger: its kernels compute only what it has."""

MOST_TAPE_OUTPUTS = 33
"""Such a step has one output more than tokens, since the two must differ, up to one more than a full batch."""


@dataclass(frozen=True, slots=True)
class Device:
    """Memory that models may use, and what the processor there is good at.

    Attributes:
        count: how many GPUs the figures add up; 1 for a CPU.
        overhead_bytes: what one worker process takes before any weight.
        native_kernels: this CPU can have kernels compiled for it: bf16 matrix products on plain weights, and all
            products on quantized ones, are computed by these.
        native_kernels_reason: why it cannot; empty if it can.
    """

    kind: DeviceKind
    name: str
    count: int
    total_bytes: int
    free_bytes: int
    supports_bfloat16: bool
    overhead_bytes: int
    native_kernels: bool = False
    native_kernels_reason: str = ""


@dataclass(frozen=True, slots=True)
class FitReport:
    """What a model needs against what there is, in bytes; what ``dry_run`` answers.

    ``total_bytes`` and ``available_bytes`` are for models: ``reserve_bytes`` of the device are kept for others.

    Attributes:
        quantization: the format that linear layers' weights would take; none is ``dtype``.
        weights_bytes: the tensors, and a packed copy of a tied output layer where the CPU wants one.
        kv_cache_bytes: keys, values and states of ``kv_cache_tokens``.
        working_bytes: what steps take beside them: activations, scores, logits, compiled kernels, tapes. More where a
            load that quantizes takes more than all of it on the way: numbers that it converts before.
        overhead_bytes: the process itself, its tokenizer, and what the trial at its load has compiled.
        loaded_bytes: the part of it that is taken once the model is loaded, before the first request: weights and
            overhead. On a GPU weights and KV cache, which is reserved at once there, and no CUDA context: the same as
            ``EngineFacts.memory_bytes``, which it is held against.
        correction: what earlier loads of the model taught: measured against estimated, already in the figures.
    """

    model: str
    device: DeviceKind
    dtype: str
    quantization: Quantization | None
    weights_bytes: int
    kv_cache_bytes: int
    kv_cache_tokens: int
    working_bytes: int
    overhead_bytes: int
    reserve_bytes: int
    total_bytes: int
    available_bytes: int
    loaded_bytes: int = 0
    correction: float = 1.0

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
class Alternative:
    """Another way to load a model that does not fit, or not well: it would take ``needed_bytes``."""

    dtype: str
    quantization: Quantization | None
    kv_cache_tokens: int
    needed_bytes: int


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """Everything a worker process must know to load a model: all decided before it starts.

    Attributes:
        promised_bytes: what it may grow to, by the estimate that admitted it.
        quantization: the format its linear layers' weights take in memory, by ``Quantization``'s names; none keeps them
            in ``dtype``.
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
    quantization: str | None = None


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What a loaded model became; ``/status`` and the log show it.

    Attributes:
        attention_reason: why this kernel and not a faster one.
        batching: ``continuous``, or ``sequential``: one request at a time.
        batching_reason: why a model runs sequentially; empty otherwise.
        weights_bytes: parameters and buffers, tied ones once.
        memory_bytes: what the worker held of its own once it was loaded: on a GPU what PyTorch has reserved there,
            without the CUDA context; elsewhere the whole process, what it shares with others left out.
        peak_memory_bytes: the most it held on the way there.
        quantization: the format that its linear layers' weights have in memory; none is ``dtype``.
        kernels: what computes matrix products on a CPU: ``native``, ``onednn`` or ``torch``; empty elsewhere.
        kernels_reason: why no faster ones; empty for the fastest.
        tool_format: how its template has it write tool calls: ``hermes``, ``llama3`` or ``mistral``; none where the
            template knows no tools.
        reasoning_tags: what its reasoning begins and ends with, such as ``<think>`` and ``</think>``; none where it
            knows no such tokens.
        reasons_from_start: the template ends the prompt with the first of them, so that the answer begins inside.
        tag_tokens: the tags of its calls and of its reasoning that are single tokens of its vocabulary, and their ids;
            they reach an answer as text.
        embeds: it can turn texts into vectors.
        embedding_dimensions: the numbers in each of them; none where it makes none.
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
    peak_memory_bytes: int = 0
    quantization: str | None = None
    kernels: str = ""
    kernels_reason: str = ""
    tool_format: str | None = None
    reasoning_tags: tuple[str, str] | None = None
    reasons_from_start: bool = False
    tag_tokens: tuple[tuple[str, int], ...] = ()
    embeds: bool = False
    embedding_dimensions: int | None = None


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy an engine is, and the memory that its process takes."""

    running: int = 0
    waiting: int = 0
    kv_cache_usage_ratio: float = 0.0
    memory_bytes: int = 0

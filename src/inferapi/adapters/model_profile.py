"""What a model is, from its config and its tensors' names and shapes: nothing is executed, no weight is read.

A hostile config is refused here, before transformers sees it: one that names code of its own, or sets
transformers' private switches (CVE-2026-4372 was such a switch).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from inferapi.adapters import model_layers
from inferapi.adapters.model_files import Json, Tensor
from inferapi.adapters.model_layers import integer
from inferapi.domain.errors import ModelInvalid, RemoteCodeRefused
from inferapi.domain.model import ModelProfile, ModelRef

_TOLD_KEY_CHARS = 60
_BROKEN = (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError)


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
    if config.get("transformers_weights") is not None:
        raise ModelInvalid(model=model, problem="its config names other weights (transformers_weights)")
    if not tensors:
        raise ModelInvalid(model=model, problem="its weights hold no tensors")
    text = config.get("text_config")
    text = text if isinstance(text, dict) else config
    try:
        # Named explicitly, or else told by what is stored: defaults differ between architectures.
        ties_output = bool(config.get("tie_word_embeddings")) or not model_layers.has_output(tensors)
        hidden = integer(text, "hidden_size", "n_embd", "d_model")
        vocabulary = integer(text, "vocab_size")
        loaded = model_layers.loaded(tensors, ties_output=ties_output)
        shapes, expert_shapes = model_layers.matrix_shapes(loaded, output=(vocabulary, hidden))
        return ModelProfile(
            ref=ref,
            architecture=str((config.get("architectures") or ["unknown"])[0]),
            parameters_by_dtype=_parameters_by_dtype(loaded),
            stored_bytes=sum(tensor.stored_bytes for tensor in tensors.values()),
            layers=model_layers.layer_shapes(text, hidden, tensors),
            hidden_size=hidden,
            intermediate_size=_intermediate_size(text, hidden),
            vocab_size=vocabulary,
            context_window_tokens=integer(
                text,
                "max_position_embeddings",
                "n_positions",
                "n_ctx",
                "max_sequence_length",
                "seq_length",
                default=8192,
            ),
            prequantized="quantization_config" in config,
            ties_output=ties_output,
            sequential=model_layers.runs_alone(text, tensors),
            scores_in_full=model_layers.scores_in_full(text),
            attention_heads=integer(text, "num_attention_heads", "n_head", "n_heads", "num_heads", default=1),
            matrix_shapes=shapes,
            expert_shapes=expert_shapes,
            linears=model_layers.linear_shapes(loaded),
            output=model_layers.output_shape(loaded),
            scan_elements_per_token=model_layers.scan_elements_per_token(text, tensors),
        )
    except _BROKEN as error:
        raise ModelInvalid(model=model, problem="its config is not that of a language model") from error


def _parameters_by_dtype(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    by_dtype: dict[str, int] = {}
    for tensor in tensors.values():
        by_dtype[tensor.dtype] = by_dtype.get(tensor.dtype, 0) + prod(tensor.shape)
    return by_dtype


def _intermediate_size(config: Json, hidden: int) -> int:
    """The inner width that one token computes: of all experts that it visits, where there are any."""
    dense = integer(config, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", default=4 * hidden)
    visited = integer(config, "num_experts_per_tok", "moe_k", default=1)
    return max(dense, visited * integer(config, "moe_intermediate_size", default=dense))


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

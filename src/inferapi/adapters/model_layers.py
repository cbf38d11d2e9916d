"""What each decoder layer keeps and how it computes, from the config and the tensors' names and shapes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from inferapi.adapters.model_files import Json, Tensor
from inferapi.domain.model import LayerShape, LinearShape

_MATRIX_DIMS, _MASK_DIMS = 2, 4
_MOST_LAYERS = 10_000
_IN_LAYER = re.compile(r"\.(\d+)\.(.+)$")
_PROJECTION = re.compile(r"\b([kv])_proj\.weight$")
_EXPERT = re.compile(r"\bexperts\.")
_EMBEDDING = re.compile(r"(embed|wte|wpe)")
_ROUTER = re.compile(r"\b(gate|router)\.weight$")  # a plain parameter of transformers' mixtures of experts
_FLOATS = re.compile(r"B?F\d")
_OUTPUT = re.compile(r"^(.*\.)?(lm_head|embed_out|output_layer)\.weight$")
_NEVER_LOADED = re.compile(r"(\battn\.(masked_)?bias|\battention\.(masked_)?bias|rotary_emb\.inv_freq)$")
_PAGED_LAYERS = {"full_attention", "sliding_attention"}
_LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}
_CHUNK_TOKENS = 64  # of the gated delta rule, whose config names none


@dataclass(slots=True)
class _Layer:
    """What the tensors of one layer tell: rows of its key and value projections, its state, its scan's width."""

    rows: dict[str, int] = field(default_factory=dict)
    attends: bool = False
    conv_elements: int = 0
    decays: tuple[int, ...] = ()


def layer_shapes(config: Json, hidden_size: int, tensors: Mapping[str, Tensor]) -> tuple[LayerShape, ...]:
    """The shape of each layer: from its tensors, else by the config's formula.

    Latent attention keeps expanded heads in the paged cache, and the latents where a model runs sequentially.

    Raises:
        ValueError: this is no config of a language model.
    """
    num_layers = integer(config, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    if num_layers > _MOST_LAYERS:
        raise ValueError(num_layers)
    layers = _by_layer(tensors)
    return tuple(_shape(config, hidden_size, index, layers.get(index, _Layer())) for index in range(num_layers))


def runs_alone(config: Json, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the config rules out batches: the engine's own rules, as far as a config shows them."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    flavours = [rope, *rope.values()] if isinstance(rope, dict) else []
    kinds = {flavour.get("rope_type") or flavour.get("type") for flavour in flavours if isinstance(flavour, dict)}
    return (
        bool(set(_types(config)) - _PAGED_LAYERS)
        or bool(kinds & _LENGTH_DEPENDENT_ROPE)
        or _has_position_bias(config)
        or any(layer.conv_elements for layer in _by_layer(tensors).values())
    )


def scores_in_full(config: Json) -> bool:
    """Whether attention holds the scores of all heads at once: biases, soft caps and sinks allow no fused kernel."""
    caps = (config.get("attn_logit_softcapping"), config.get("model_type") == "gpt_oss")
    return _has_position_bias(config) or any(caps)


def scan_elements_per_token(config: Json, tensors: Mapping[str, Tensor]) -> int:
    """Numbers that the widest recurrent layer holds for each token of a prompt, in transformers' plain formulas.

    Mamba holds ten tensors of channels by states; Mamba 2 one and a half of chunk by heads by states, the gated
    delta rule eight of chunk by heads: measured with docs/benchmarks/memory-fit.md's models.
    """
    chunk = integer(config, "chunk_size", "mamba_chunk_size", default=_CHUNK_TOKENS)
    states = integer(config, "state_size", "mamba_d_state", "ssm_state_size", default=0, least=0)

    def width(decays: tuple[int, ...]) -> int:
        if len(decays) == _MATRIX_DIMS:
            return 10 * decays[0] * decays[1]
        heads = decays[0] if decays else 0
        return 3 * chunk * heads * states // 2 if states else 8 * chunk * heads

    return max((width(layer.decays) for layer in _by_layer(tensors).values()), default=0)


def loaded(tensors: Mapping[str, Tensor], *, ties_output: bool) -> dict[str, Tensor]:
    """The tensors that become parameters: no masks of old checkpoints, no output layer that the embedding serves."""
    return {
        name: tensor
        for name, tensor in tensors.items()
        if not (_NEVER_LOADED.search(name) and len(tensor.shape) in {0, 1, _MASK_DIMS})
        and not (ties_output and _OUTPUT.search(name))
    }


def has_output(tensors: Mapping[str, Tensor]) -> bool:
    """Whether an output layer of its own is stored."""
    return any(_OUTPUT.search(name) for name in tensors)


def matrix_shapes(tensors: Mapping[str, Tensor], *, output: tuple[int, int]) -> tuple[int, int]:
    """How many different shapes the linear layers' weights have, the output layer's ``[V, H]`` included; and experts'.

    Experts are computed otherwise, and embeddings are looked up.
    """
    dense, experts = {output}, set()
    for name, tensor in tensors.items():
        if _EXPERT.search(name):
            experts.add(tensor.shape[-_MATRIX_DIMS:])
        elif len(tensor.shape) == _MATRIX_DIMS and not _EMBEDDING.search(name):
            dense.add((tensor.shape[0], tensor.shape[1]))
    return len(dense), sum(len(shape) == _MATRIX_DIMS for shape in experts)


def linear_shapes(tensors: Mapping[str, Tensor]) -> tuple[LinearShape, ...]:
    """The weights that quantizing changes: floating-point matrices of linear layers, the output layer left out.

    Experts are not among them: transformers stacks theirs in three dimensions when it loads them.
    """
    others = (_EMBEDDING, _OUTPUT, _EXPERT, _ROUTER)
    counts = Counter(
        (tensor.shape[0], tensor.shape[1])
        for name, tensor in tensors.items()
        if _is_matrix(name, tensor) and not any(other.search(name) for other in others)
    )
    return tuple(LinearShape(outputs, inputs, count) for (outputs, inputs), count in counts.items())


def output_shape(tensors: Mapping[str, Tensor]) -> LinearShape | None:
    """The output layer's own weight, if there is one."""
    found = (tensor.shape for name, tensor in tensors.items() if _OUTPUT.search(name) and _is_matrix(name, tensor))
    return next((LinearShape(shape[0], shape[1]) for shape in found), None)


def _is_matrix(name: str, tensor: Tensor) -> bool:
    is_float = _FLOATS.match(tensor.dtype) is not None
    return is_float and name.endswith(".weight") and len(tensor.shape) == _MATRIX_DIMS


def integer(config: Json, *names: str, default: int | None = None, least: int = 1) -> int:
    """The first of these keys that is set: architectures name the same thing differently.

    Raises:
        ValueError: none is, or it is no number of things.
    """
    value = next((config[name] for name in names if config.get(name) is not None), default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
        raise ValueError(names[0])
    return value


def _by_layer(tensors: Mapping[str, Tensor]) -> dict[int, _Layer]:
    layers: dict[int, _Layer] = {}
    for name, tensor in tensors.items():
        found = _IN_LAYER.search(name)
        if found is None:
            continue
        layer, inner, dims = layers.setdefault(int(found[1][:6]), _Layer()), found[2], len(tensor.shape)
        if (projection := _PROJECTION.search(inner)) and dims == _MATRIX_DIMS:
            layer.rows[projection[1]] = tensor.shape[0]
        if inner.endswith("A_log") and 0 < dims <= _MATRIX_DIMS:
            layer.decays = tensor.shape
        if "conv" in inner and dims == 3 and tensor.shape[1] == 1:  # noqa: PLR2004 - [channels, 1, kernel]: depthwise
            layer.conv_elements += tensor.shape[0] * tensor.shape[2]
        layer.attends |= "attn." in inner.replace("linear_attn.", "") or "attention." in inner
    return layers


def _shape(config: Json, hidden_size: int, index: int, layer: _Layer) -> LayerShape:
    types = _types(config)
    window = config.get("sliding_window") or None
    window = window if index < len(types) and types[index] == "sliding_attention" else None
    if layer.conv_elements and not layer.attends:
        return LayerShape(0, 0, 0, None, _state_elements(config, layer))
    heads = integer(config, "num_attention_heads", "n_head", "n_heads", "num_heads", default=1)
    state = _state_elements(config, layer) if layer.conv_elements else 0
    if "kv_lora_rank" in config:  # multi-head latent attention
        rope = integer(config, "qk_rope_head_dim")
        value = integer(config, "v_head_dim")
        if set(types) - _PAGED_LAYERS:
            return LayerShape(1, integer(config, "kv_lora_rank"), rope, window, state)
        return LayerShape(heads, integer(config, "qk_nope_head_dim") + rope, value, window, state)
    if layer.rows.keys() == {"k", "v"} and "quantization_config" not in config:
        return LayerShape(1, layer.rows["k"], layer.rows["v"], window, state)
    head_dim = integer(config, "head_dim", default=hidden_size // heads)
    kv_heads = integer(config, "num_key_value_heads", "num_kv_heads", default=1 if config.get("multi_query") else heads)
    return LayerShape(kv_heads, head_dim, head_dim, window, state)


def _state_elements(config: Json, layer: _Layer) -> int:
    """The convolution's last inputs and the recurrent state of one sequence."""
    if len(layer.decays) == _MATRIX_DIMS:
        return layer.conv_elements + layer.decays[0] * layer.decays[1]
    heads = layer.decays[0] if layer.decays else 0
    states = integer(config, "state_size", "mamba_d_state", "ssm_state_size", "linear_key_head_dim", default=1)
    width = integer(config, "linear_value_head_dim", "mamba_d_head", "mamba_head_dim", "head_dim", default=1)
    return layer.conv_elements + heads * states * width


def _types(config: Json) -> list[str]:
    types: Any = config.get("layer_types") or []
    if not isinstance(types, list) or not all(isinstance(one, str) for one in types):
        raise ValueError("layer_types")
    return types


def _has_position_bias(config: Json) -> bool:
    """ALiBi: the bias makes attention build a mask of its own."""
    nested = config.get("attn_config")
    nested = nested if isinstance(nested, dict) else {}
    return bool(config.get("alibi") or nested.get("alibi") or config.get("model_type") in {"bloom", "mpt"})

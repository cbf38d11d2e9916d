"""Whether a model's attention can run on the paged cache, found out by trying.

No list of architectures: a probe pass records what every layer hands to attention, and a rehearsal computes the
same tokens in chunks, in a batch, on the cache, and compares with the model's own forward pass. A model that
differs runs sequentially, correct and slower.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface

from inferapi.domain.generation import SamplingParams
from inferapi.domain.model import LayerShape
from inferapi.engine.attention import PagedAttention, UnsupportedAttentionError, refuse_unknown
from inferapi.engine.kv_cache import BLOCK_TOKENS, KvCache
from inferapi.engine.loop import is_out_of_memory
from inferapi.engine.model_runner import BatchedRunner
from inferapi.engine.native.attention import NativeAttention, can_attend
from inferapi.engine.native.kernels import Kernels
from inferapi.engine.request import Request
from inferapi.engine.scheduler import Plan, Segment

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_names = (f"inferapi_paged_{count}" for count in itertools.count())  # the registry is one for all models
_REHEARSAL_TOKENS = 24
_TOLERANCE = {torch.float32: 1e-3}
# Relative, of centred logits. Rounding alone gives 0.04 for SmolLM2 in bf16; a wrong mask or position, 0.5 and more.
_HALF_TOLERANCE = 0.2
_SUPPORTED_LAYERS = {"full_attention", "sliding_attention"}
_LENGTH_DEPENDENT_ROPE = {"dynamic", "longrope"}


class NotPageableError(Exception):
    """Why a model runs sequentially."""


@dataclass(frozen=True, slots=True)
class Paged:
    """A runner on the paged cache.

    Attributes:
        attention_products: multiplications that attention makes for a token and each token before it, where a window
            does not end it.
    """

    runner: BatchedRunner
    num_blocks: int
    needs_plain_formula: bool
    is_native: bool
    attention_products: int


@dataclass(slots=True)
class _Probe:
    """An attention function that records what it is given."""

    layers: dict[int, LayerShape]
    devices: dict[int, torch.device]
    query_heads: dict[int, int]
    needs_plain_formula: bool = False

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        sliding_window: int | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        refuse_unknown(attention_mask, {name: kwargs[name] for name in kwargs.keys() - {"scaling", "dropout"}})
        layer = getattr(module, "layer_idx", None)
        if layer is None or layer in self.layers:
            raise UnsupportedAttentionError("its layers do not call attention once each")
        if query.shape[1] % key.shape[1] or key.shape[:3] != value.shape[:3]:
            raise UnsupportedAttentionError("its keys and values differ in number")
        self.layers[layer] = LayerShape(key.shape[1], key.shape[3], value.shape[3], sliding_window)
        self.devices[layer] = key.device
        self.query_heads[layer] = query.shape[1]
        self.needs_plain_formula |= softcap is not None or s_aux is not None
        return query.new_zeros((1, query.shape[2], query.shape[1], value.shape[3])), None


def make_batched_runner(
    model: PreTrainedModel,
    num_blocks: int,
    *,
    flash: bool,
    kernels: Kernels | None = None,
    max_step_tokens: int = 0,
) -> Paged:
    """Give the model a paged cache of ``num_blocks`` and prove that it computes the same.

    ``kernels`` attend in steps of up to ``max_step_tokens``.

    Raises:
        NotPageableError: it does not; the model is as it was.
    """
    own_attention = model.config._attn_implementation  # noqa: SLF001 - there is no public name for it
    try:
        return _make(model, num_blocks, flash=flash, kernels=kernels, max_step_tokens=max_step_tokens)
    except NotPageableError:
        model.set_attn_implementation(own_attention)
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        model.set_attn_implementation(own_attention)
        if isinstance(error, UnsupportedAttentionError):
            raise NotPageableError(str(error)) from error
        raise NotPageableError(f"its forward pass does not take flattened batches ({type(error).__name__})") from error


def _make(
    model: PreTrainedModel, num_blocks: int, *, flash: bool, kernels: Kernels | None, max_step_tokens: int
) -> Paged:
    _refuse_by_config(model)
    tokens = _rehearsal_tokens(model)
    with torch.inference_mode():
        input_ids = torch.tensor([tokens], device=model.device)
        expected = model(input_ids=input_ids, use_cache=False).logits[0].float()
        probe = _Probe({}, {}, {})
        _use(model, probe)
        model(input_ids=input_ids[:, :2], position_ids=torch.arange(2, device=input_ids.device)[None], use_cache=False)
    if sorted(probe.layers) != list(range(len(probe.layers))) or not probe.layers:
        raise NotPageableError("its layers are not all attention layers")
    layers = [probe.layers[index] for index in range(len(probe.layers))]
    devices = [probe.devices[index] for index in range(len(probe.layers))]
    # The last block takes what the rows that fill up a CUDA graph leave: no request gets it.
    cache = KvCache(layers, num_blocks + (devices[0].type == "cuda"), model.dtype, devices)
    query_heads = [probe.query_heads[index] for index in range(len(probe.layers))]
    native = None
    if kernels is not None and not probe.needs_plain_formula and can_attend(layers, query_heads, model.dtype):
        native = NativeAttention(kernels, layers, query_heads, cache, max_step_tokens)
    attention = PagedAttention(layers, cache, flash=flash and not probe.needs_plain_formula, native=native)
    _use(model, attention)
    runner = BatchedRunner(
        model,
        attention,
        cache,
        kernels if native is not None else None,
        windows_tokens=dict.fromkeys(layer.window_tokens for layer in layers),
    )
    tolerance = _TOLERANCE.get(model.dtype, _HALF_TOLERANCE)
    difference = _rehearse(runner, tokens, expected)
    if runner.repeats:
        if difference <= tolerance:  # once more, from what was written down
            difference = _rehearse(runner, tokens, expected)
        if not difference <= tolerance:
            runner.stop_repeating()
            difference = _rehearse(runner, tokens, expected)
    if not difference <= tolerance:
        raise NotPageableError(f"in flattened batches its logits differ by {difference:.2g}")
    products = sum(
        heads * (layer.key_dim + layer.value_dim)
        for heads, layer in zip(query_heads, layers, strict=True)
        if layer.window_tokens is None
    )
    return Paged(
        runner,
        num_blocks,
        probe.needs_plain_formula,
        is_native=native is not None,
        attention_products=products,
    )


def _refuse_by_config(model: PreTrainedModel) -> None:
    """What a short rehearsal cannot show."""
    config = model.config.get_text_config(decoder=True)
    others = set(getattr(config, "layer_types", None) or ()) - _SUPPORTED_LAYERS
    if others:
        raise NotPageableError(f"it has layers of type {', '.join(sorted(others))}")
    rope = getattr(config, "rope_parameters", None) or {}
    flavours = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    if any(flavour.get("rope_type") in _LENGTH_DEPENDENT_ROPE for flavour in flavours):
        raise NotPageableError("its position frequencies depend on the longest request in a batch")
    if not model._can_set_attn_implementation():  # noqa: SLF001 - nothing public tells
        raise NotPageableError("its class computes attention by itself")


def _use(model: PreTrainedModel, attention: Any) -> None:
    name = next(_names)
    AttentionInterface.register(name, attention)
    model.set_attn_implementation(name)


def _rehearsal_tokens(model: PreTrainedModel) -> list[int]:
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    return [(7919 * index + 11) % vocabulary for index in range(_REHEARSAL_TOKENS)]


def _rehearse(runner: BatchedRunner, tokens: Sequence[int], expected: torch.Tensor) -> float:
    """Compute ``tokens`` in two chunks and then one by one, beside another request: how far the logits are off."""
    blocks_each = -(-_REHEARSAL_TOKENS // BLOCK_TOKENS)
    subject, other = (Request(n, [], _REHEARSAL_TOKENS, SamplingParams(), 0.0) for n in range(2))
    subject.blocks = list(range(blocks_each))
    other.blocks = list(range(blocks_each, 2 * blocks_each))

    def feed(request: Request, source: Sequence[int], end: int) -> Segment:
        start = len(request.tokens)
        request.tokens += source[start:end]
        return Segment(request, start, end - start)

    backwards = tokens[::-1]
    worst = 0.0
    # Two chunks of the subject, the second beside a decode of the other; then two decodes of both.
    for subject_end, other_end in ((10, 7), (22, 8), (23, 9), (24, 10)):
        segments = (feed(other, backwards, other_end), feed(subject, tokens, subject_end))
        decodes = tuple(segment for segment in segments if segment.length == 1)
        plan = Plan(decodes, tuple(segment for segment in segments if segment.length > 1))
        worst = max(worst, _difference(runner.run(plan)[1], expected[subject_end - 1]))
    return worst


def _difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative difference of two rows of logits ``[V]``, without their common offset."""
    centred, target = (row.float() - row.float().mean() for row in (logits, expected))
    return float((centred - target).norm() / target.norm().clamp_min(1e-12))

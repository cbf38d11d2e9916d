"""Attention of one step over the paged cache, called from inside transformers' own modelling code.

transformers lets an attention function be registered by name and calls it from every layer of every
architecture that supports it, without building a mask. The whole step arrives flattened: the tokens of all
requests in one row, first one token for each decoding request, then the chunks of prompts.

Decoding reads the blocks where they lie: each block's scores against its owner's query are one small matrix
product, and the softmax over an owner's blocks is put together afterwards from the blocks' maxima and sums
(the split softmax of Flash-Decoding, Dao et al. 2023; Milakov & Gimelshein 2018). Nothing is copied, padded
to the longest request, or expanded to the query heads.

Shapes: ``T`` tokens of this step, ``B`` decoding requests, ``E`` blocks they hold, ``P`` tokens a block,
``L`` tokens of one request so far, ``H`` key-value heads, ``G`` query heads a key-value head, ``D`` head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from inferapi.domain.model import LayerShape
from inferapi.engine.kv_cache import BLOCK_TOKENS, KvCache
from inferapi.engine.native.attention import NativeAttention
from inferapi.engine.scheduler import Plan
from inferapi.engine.static_steps import StaticStep
from inferapi.engine.step_layout import DecodeView, StepLayout

_NEVER_A_MASK = frozenset({"position_ids", "cache_position", "position_embeddings"})


class UnsupportedAttentionError(Exception):
    """The model computes attention in a way that the paged cache cannot hold; it runs sequentially."""


class PagedAttention:
    """The registered attention function, bound to one model's cache."""

    def __init__(
        self,
        layers: Sequence[LayerShape],
        cache: KvCache,
        *,
        flash: bool = False,
        native: NativeAttention | None = None,
    ) -> None:
        self._layers = layers
        self._cache = cache
        self._flash = flash
        self._native = native
        self._steps: dict[torch.device, StepLayout | StaticStep] = {}
        self._plan: Plan | None = None

    def begin(self, plan: Plan) -> None:
        """Say what the next forward pass computes."""
        self._plan = plan
        self._steps.clear()
        if self._native is not None:
            self._native.tables.fill(plan)

    def use(self, step: StaticStep) -> None:
        """Say what the next forward pass computes, in the place of a plan: see ``cuda_graphs.py``."""
        self._steps = {step.write_blocks.device: step}

    @property
    def is_native(self) -> bool:
        """The native kernels attend."""
        return self._native is not None

    def __call__(
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,  # noqa: ARG002 - always 0 in inference
        softcap: float | None = None,
        s_aux: torch.Tensor | None = None,
        sliding_window: int | None = None,  # noqa: ARG002 - the probe has noted it in the layer's shape
        **kwargs: Any,
    ) -> tuple[torch.Tensor, None]:
        """Attend: ``query`` ``[1, H*G, T, D]``, ``key`` and ``value`` ``[1, H, T, D]`` to ``[1, T, H*G, D]``.

        ``softcap`` bounds the scores (Gemma 2), ``s_aux`` ``[H*G]`` are attention sinks (gpt-oss).
        """
        refuse_unknown(attention_mask, kwargs)
        layer = int(module.layer_idx)  # type: ignore[arg-type]  # nn.Module types every attribute as a tensor
        window = self._layers[layer].window_tokens
        scale = scaling if scaling is not None else query.shape[-1] ** -0.5
        if self._native is not None:
            return self._native(layer, query, key, value, scale), None
        step = self._step(query.device)
        keys, values = key[0].transpose(0, 1), value[0].transpose(0, 1)  # [T, H, D]
        self._cache.write(layer, keys, values, step.write_blocks, step.write_offsets)

        num_decodes = len(step.plan.decodes)
        outputs = []
        if num_decodes:
            queries = query[0, :, :num_decodes].transpose(0, 1)  # [B, H*G, D]
            outputs.append(self._decode(layer, queries * scale, step.decode_view(window), softcap, s_aux))
        begin = num_decodes
        for segment in step.plan.prefills:
            end = begin + segment.length
            if segment.start == 0:
                seen_keys, seen_values = key[0, :, begin:end], value[0, :, begin:end]
            else:
                blocks = segment.request.blocks[: -(-(segment.start + segment.length) // BLOCK_TOKENS)]
                index = torch.tensor(blocks, device=query.device)
                length = segment.start + segment.length
                seen_keys = self._cache.keys[layer][index].transpose(0, 1).flatten(1, 2)[:, :length]
                seen_values = self._cache.values[layer][index].transpose(0, 1).flatten(1, 2)[:, :length]
            outputs.append(
                _prefill(
                    query[0, :, begin:end],
                    seen_keys,
                    seen_values,
                    scale=scale,
                    window_tokens=window,
                    softcap=softcap,
                    sinks=s_aux,
                    flash=self._flash,
                )
            )
            begin = end
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None], None

    def _step(self, device: torch.device) -> StepLayout | StaticStep:
        step = self._steps.get(device)
        if step is None:
            assert self._plan is not None  # noqa: S101 - begin() is called by the runner before every pass
            step = self._steps[device] = StepLayout(self._plan, device, self._cache.num_blocks)
        return step

    def _decode(
        self,
        layer: int,
        queries: torch.Tensor,
        view: DecodeView,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """One scaled query a request, ``[B, H*G, D]``, against its blocks; returns ``[B, H*G, D]``."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        if view.gathered is None:
            keys, values = keys[: view.num_blocks], values[: view.num_blocks]
        else:
            keys, values = keys[view.gathered], values[view.gathered]
        num_requests, num_kv_heads = queries.shape[0], keys.shape[1]
        # One row more than requests: the owner of the blocks of nobody, whose leavings may be NaN. [B + 1, H, G, D]
        grouped = F.pad(queries, (0, 0, 0, 0, 0, 1)).view(num_requests + 1, num_kv_heads, -1, queries.shape[-1])

        scores = (grouped[view.owner] @ keys.transpose(-1, -2)).float()  # [E, H, G, P]
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        scores.masked_fill_(view.hidden, float("-inf"))

        peak = scores.new_full(grouped.shape[:3], torch.finfo(torch.float32).min)  # [B, H, G]
        if sinks is not None:
            peak = torch.maximum(peak, sinks.float().view(1, num_kv_heads, -1))
        peak.index_reduce_(0, view.owner, scores.amax(-1), "amax")
        weights = torch.exp(scores - peak[view.owner].unsqueeze(-1))
        # Nothing to a sum of 1 or more; for the rows of nobody in a graph, which see no token, not a division by 0.
        total = torch.full_like(peak, torch.finfo(torch.float32).tiny)
        if sinks is not None:
            total = torch.exp(sinks.float().view(1, num_kv_heads, -1) - peak)
        total.index_add_(0, view.owner, weights.sum(-1))

        parts = (weights.to(values.dtype) @ values).float()  # [E, H, G, D]
        out = parts.new_zeros((*grouped.shape[:3], values.shape[-1])).index_add_(0, view.owner, parts)
        return (out / total.unsqueeze(-1))[:num_requests].to(queries.dtype).flatten(1, 2)


def refuse_unknown(attention_mask: torch.Tensor | None, kwargs: dict[str, Any]) -> None:
    """Refuse what would change the result and is not understood here.

    Raises:
        UnsupportedAttentionError: a mask of the model's own, or a tensor such as a position bias.
    """
    if attention_mask is not None:
        raise UnsupportedAttentionError("the model builds an attention mask of its own")
    if kwargs.get("is_causal") is False:
        raise UnsupportedAttentionError("the model attends to later tokens")
    for name, value in kwargs.items():
        if isinstance(value, torch.Tensor) and name not in _NEVER_A_MASK:
            raise UnsupportedAttentionError(f"the model passes {name} to attention")


def _prefill(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    scale: float,
    window_tokens: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
    flash: bool,
) -> torch.Tensor:
    """The last ``T`` tokens of one request against all ``L``: ``[H*G, T, D]``, ``[H, L, D]`` to ``[T, H*G, D]``.

    flash-attn where it was chosen; else SDPA, unless soft-capped scores or sinks ask for the plain formula.
    """
    if flash and sinks is None:
        from flash_attn import flash_attn_func  # noqa: PLC0415 - an optional extra

        out = flash_attn_func(
            query.transpose(0, 1)[None],
            keys.transpose(0, 1)[None],
            values.transpose(0, 1)[None],
            softmax_scale=scale,
            causal=True,
            window_size=(window_tokens - 1 if window_tokens else -1, 0),
            softcap=softcap or 0.0,
        )
        return torch.as_tensor(out)[0]
    num_tokens, length = query.shape[1], keys.shape[1]
    group = query.shape[0] // keys.shape[0]
    windowed = window_tokens is not None and window_tokens < length
    mask = None
    if windowed or num_tokens < length or softcap is not None or sinks is not None:
        position = torch.arange(length - num_tokens, length, device=query.device)[:, None]
        other = torch.arange(length, device=query.device)[None, :]
        mask = other <= position
        if window_tokens is not None and windowed:
            mask &= other > position - window_tokens
    if softcap is None and sinks is None:
        out = F.scaled_dot_product_attention(
            query[None],
            keys[None],
            values[None],
            attn_mask=mask,
            is_causal=mask is None and num_tokens > 1,
            scale=scale,
            enable_gqa=group > 1,
        )
        return out[0].transpose(0, 1)
    scores = query @ keys.repeat_interleave(group, 0).transpose(1, 2) * scale  # [H*G, T, L]
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.float().masked_fill(~mask, float("-inf")) if mask is not None else scores.float()
    if sinks is not None:
        column = sinks.float().view(-1, 1, 1).expand(-1, num_tokens, 1)
        weights = torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1]
    else:
        weights = torch.softmax(scores, -1)
    return (weights.to(values.dtype) @ values.repeat_interleave(group, 0)).transpose(0, 1)

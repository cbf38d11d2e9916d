"""One forward pass for one plan: the batched runner, on the paged cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from inferapi.engine.attention import PagedAttention
from inferapi.engine.kv_cache import BLOCK_TOKENS, KvCache
from inferapi.engine.request import Request
from inferapi.engine.scheduler import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Runner(Protocol):
    """Computes what a plan says. The step loop is its only caller."""

    def run(self, plan: Plan) -> torch.Tensor:
        """Logits ``[R, V]`` for the segments of the plan that sample, in the plan's order."""
        ...

    def release(self, request: Request) -> None:
        """Forget a request that finished or was cancelled."""
        ...


class BatchedRunner:
    """Flattens all tokens of a plan into one row; positions and blocks tell the requests apart."""

    def __init__(self, model: PreTrainedModel, attention: PagedAttention, cache: KvCache) -> None:
        self._model = model
        self._attention = attention
        self._cache = cache
        self._device = next(model.get_input_embeddings().parameters()).device
        self._last_device = cache.keys[-1].device  # another one where a model is spread over several GPUs

    @torch.inference_mode()
    def run(self, plan: Plan) -> torch.Tensor:
        """See ``Runner``."""
        tokens: list[int] = []
        positions: list[int] = []
        last: list[int] = []  # where in the row the segments that sample end
        fresh: list[int] = []
        for segment in plan.segments:
            end = segment.start + segment.length
            tokens += segment.request.tokens[segment.start : end]
            positions += range(segment.start, end)
            if segment.samples:
                last.append(len(tokens) - 1)
            fresh += _blocks_begun(segment.request.blocks, segment.start, end)
        for moves in plan.moves:
            self._cache.move(moves)
        self._cache.clean(fresh)
        self._attention.begin(plan)
        output = self._model(
            input_ids=torch.tensor([tokens], device=self._device),
            position_ids=torch.tensor([positions], device=self._device),
            use_cache=False,
            # With nothing to sample one row is computed all the same: 0 would mean all of them.
            logits_to_keep=torch.tensor(last or [len(tokens) - 1], device=self._last_device),
        )
        logits: torch.Tensor = output.logits[0]
        return logits[: len(last)]

    def release(self, request: Request) -> None:
        """Nothing to do: the scheduler gives the blocks back."""


def _blocks_begun(blocks: Sequence[int], start: int, end: int) -> Sequence[int]:
    """Blocks whose first token is in ``start..end``."""
    return blocks[-(-start // BLOCK_TOKENS) : -(-end // BLOCK_TOKENS)]

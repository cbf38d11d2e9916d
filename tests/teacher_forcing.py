"""What a runner thinks of every token of given texts, however their tokens come to it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch

from inferapi.domain.generation import SamplingParams
from inferapi.engine.kv_cache import BLOCK_TOKENS
from inferapi.engine.model_runner import Runner
from inferapi.engine.request import Request
from inferapi.engine.scheduler import Plan, Segment


def logits_of(
    runner: Runner, texts: Sequence[Sequence[int]], chunks: Sequence[Sequence[int]] | None = None
) -> list[dict[int, torch.Tensor]]:
    """Compute ``texts`` in a batch, as many tokens of each a step as ``chunks`` say, then one by one.

    Returns for each text the logits ``[V]`` after its n-th token, for those tokens that end a chunk.
    """
    requests = []
    blocks = iter(range(10**6))
    plans: list[list[tuple[int, int]]] = []
    for text, begun in zip(texts, chunks or [[]] * len(texts), strict=True):
        request = Request(len(requests), [], 0, SamplingParams(), 0.0)
        request.blocks = [next(blocks) for _ in range(-(-len(text) // BLOCK_TOKENS))]
        requests.append(request)
        ends = list(accumulate(begun))
        plans.append(list(pairwise([0, *ends, *range((ends or [0])[-1] + 1, len(text) + 1)])))
    found: list[dict[int, torch.Tensor]] = [{} for _ in texts]
    for step in range(max(map(len, plans))):
        segments = []
        for request, text, plan in zip(requests, texts, plans, strict=True):
            if step < len(plan):
                start, end = plan[step]
                request.tokens += text[start:end]
                segments.append(Segment(request, start, end - start))
        decodes = tuple(segment for segment in segments if segment.length == 1)
        now = Plan(decodes, tuple(segment for segment in segments if segment.length > 1))
        for segment, row in zip(now.segments, runner.run(now).clone(), strict=True):
            found[segment.request.request_id][segment.start + segment.length] = row
    return found


def difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """How far two rows of logits ``[V]`` are apart, relative and without their common offset."""
    centred, target = (row.float() - row.float().mean() for row in (logits, expected))
    return float((centred - target).norm() / target.norm())

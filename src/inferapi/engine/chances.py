"""How likely tokens were: log-probabilities, for the requests that ask for them.

Shapes: ``R`` rows, ``V`` columns, ``N`` tokens that are among the likeliest of their row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

_LEAST = -9999.0  # what is said of a token that cannot be, as OpenAI does: infinities are no JSON


@dataclass(frozen=True, slots=True)
class Chances:
    """Natural log-probabilities: the chosen token's, and the likeliest tokens' by id.

    Attributes:
        likeliest: the likeliest first, equal ones by id; fewer than asked for where no more are possible.
    """

    logprob: float
    likeliest: tuple[tuple[int, float], ...] = ()


def chances_of(logits: torch.Tensor, tokens: Sequence[int], numbers: Sequence[int]) -> list[Chances]:
    """Of each row of ``logits`` ``[R, V]`` its token's, and those of as many likeliest ones as its number says."""
    chosen = torch.tensor(tokens, device=logits.device)[:, None]
    # Row by row, whatever the batch: torch's kernel for the last dimension splits no row.
    logits = logits.log_softmax(-1)
    logprobs: list[float] = logits.gather(-1, chosen)[:, 0].tolist()
    if not any(numbers):
        return [Chances(_finite(logprob)) for logprob in logprobs]
    return [
        Chances(_finite(logprob), tuple(row[:number]))
        for logprob, row, number in zip(logprobs, _likeliest(logits, max(numbers)), numbers, strict=True)
    ]


def _likeliest(logits: torch.Tensor, most: int) -> list[list[tuple[int, float]]]:
    """The likeliest possible tokens of each row and their values, descending; equal ones by id."""
    least = logits.topk(min(most, logits.shape[-1]), dim=-1).values[:, -1:]
    # All that are as likely as the last of them: topk takes any of equals.
    row, ids = (logits >= least.clamp(min=_LEAST)).nonzero(as_tuple=True)
    values = logits[row, ids]
    order = values.argsort(descending=True, stable=True)  # ``[N]``; two stable sorts are one by row, value and id
    order = order[row[order].argsort(stable=True)]
    counts: list[int] = row.bincount(minlength=len(logits)).tolist()
    parts = zip(ids[order].split(counts), values[order].split(counts), strict=True)
    return [list(zip(some[:most].tolist(), its[:most].tolist(), strict=True)) for some, its in parts]


def _finite(logprob: float) -> float:
    return max(_LEAST, logprob)  # NaN is not greater either

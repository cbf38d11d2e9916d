"""A token for each row from one uniform number a row: where the number falls in the row's distribution.

No pass over the vocabulary is serial, and none sorts it: sums and maxima of short blocks tell in which to look.

Shapes: ``R`` rows, ``V`` columns (a multiple of ``BLOCK``, see ``Workspace``), ``K`` candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from inferapi.domain.generation import SamplingParams

BLOCK = 256  # for sums
_MAXIMA_BLOCK = 64
_WIDTHS = (128, 2048)  # how many of the likeliest tokens filters look at first; most often the first is enough
_NO_TOP_K = 2**62


class Workspace:
    """Tensors as large as a step's logits, used again at the next step.

    New memory of that size would be cleared by the system page by page, which takes longer than to sample.
    """

    def __init__(self) -> None:
        self._vocabulary = 0
        self._floats = self._spare = torch.empty(0, 0)

    def floats(self, logits: torch.Tensor) -> torch.Tensor:
        """A copy ``[R, V]`` in float32, each row filled up to whole blocks with tokens that cannot be."""
        rows, vocabulary = logits.shape
        if self._vocabulary != vocabulary or len(self._floats) < rows or self._floats.device != logits.device:
            self._vocabulary = vocabulary
            self._floats = logits.new_full((rows, -(-vocabulary // BLOCK) * BLOCK), float("-inf"), dtype=torch.float32)
            self._spare = torch.empty_like(self._floats)
        floats = self._floats[:rows]
        floats[:, :vocabulary] = logits  # what is beyond stays impossible, whatever was divided
        return floats

    def spare(self, rows: int) -> torch.Tensor:
        """Another tensor of that shape, with anything in it."""
        return self._spare[:rows]


class FromAll:
    """Draws from the softmax of each row over its temperature."""

    def __init__(self, params: Sequence[SamplingParams], device: torch.device) -> None:
        self._temperature = _column([one.temperature for one in params], device)

    def __call__(self, logits: torch.Tensor, draws: torch.Tensor, spare: torch.Tensor) -> torch.Tensor:
        """Tokens ``[R]`` for ``logits`` ``[R, V]`` and ``draws`` ``[R]``, float64 from 0 to below 1.

        ``logits`` and ``spare`` ``[R, V]`` hold something else afterwards.
        """
        probabilities = torch.softmax(logits.div_(self._temperature), -1, out=spare)
        masses = _masses(probabilities)
        up_to = masses.cumsum(-1)
        sought = draws[:, None] * up_to[:, -1:]
        block = _first_beyond(up_to, sought)
        before = (up_to - masses).gather(-1, block)
        blocks = probabilities.view(*masses.shape, BLOCK)
        inside = blocks[torch.arange(len(blocks), device=blocks.device), block[:, 0]].double().cumsum(-1)
        return (block * BLOCK + _first_beyond(inside, sought - before))[:, 0]


@dataclass(frozen=True, slots=True)
class _Filters:
    """What is kept of each row; columns ``[R, 1]``."""

    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor

    def of(self, rows: torch.Tensor) -> _Filters:
        return _Filters(self.top_k[rows], self.top_p[rows], self.min_p[rows])


class FromFiltered:
    """Draws from what top-k, top-p and min-p keep of each row, in the order of likelihood, equal ones by id."""

    def __init__(self, params: Sequence[SamplingParams], device: torch.device) -> None:
        self._temperature = _column([one.temperature for one in params], device)
        self._filters = _Filters(
            torch.tensor([[one.top_k or _NO_TOP_K] for one in params], device=device),
            _column([one.top_p for one in params], device),
            _column([one.min_p for one in params], device),
        )
        self._least_width = 2 * max(one.top_k for one in params)
        # Where top-k cuts first, top-p is a share of what it left.
        self._needs_mass_of_all = any(one.top_p < 1 and not one.top_k for one in params)

    def __call__(self, logits: torch.Tensor, draws: torch.Tensor, spare: torch.Tensor) -> torch.Tensor:
        """Tokens ``[R]`` for ``logits`` ``[R, V]`` and ``draws`` ``[R]``, float64 from 0 to below 1.

        ``logits`` and ``spare`` ``[R, V]`` hold something else afterwards.
        """
        scaled, mass = logits.div_(self._temperature), draws[:, None]
        if self._needs_mass_of_all:  # in units of the likeliest token's
            probabilities = torch.softmax(scaled, -1, out=spare)
            mass = _masses(probabilities).sum(-1, keepdim=True) / probabilities.amax(-1, keepdim=True)
        narrow, wide = (max(width, self._least_width) for width in _WIDTHS)
        tokens, sufficed = self._draw(scaled, draws, mass, self._filters, narrow)
        if not sufficed.all():
            rows = (~sufficed).nonzero()[:, 0]
            tokens[rows], sufficed[rows] = self._draw(
                scaled[rows], draws[rows], mass[rows], self._filters.of(rows), wide
            )
            for row in (~sufficed).nonzero():  # one by one: to sort all there is takes ten times the room of the row
                tokens[row], _ = self._draw(scaled[row], draws[row], mass[row], self._filters.of(row), scaled.shape[-1])
        return tokens

    def _draw(
        self, scaled: torch.Tensor, draws: torch.Tensor, mass: torch.Tensor, filters: _Filters, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens, looking at the ``width`` likeliest, and whether no token beyond them could have been kept.

        Sums run from the likeliest on, so that what comes after, which depends on the batch, changes no bit of them.
        """
        values, ids, least = _candidates(scaled, width)
        kept = torch.arange(values.shape[-1], device=values.device) < filters.top_k
        weights = torch.exp(values - values[:, :1]) * kept  # the likeliest has 1
        up_to = weights.double().cumsum(-1)
        mass = torch.where(filters.top_k < _NO_TOP_K, up_to[:, -1:], mass)
        # top_p 1 keeps all, also where rounding makes the mass before the last tokens reach all of it.
        kept &= (up_to - weights < filters.top_p * mass) | (filters.top_p >= 1)
        kept &= (weights >= filters.min_p) & (weights > 0)  # what cannot be makes nobody look further
        kept[:, 0] = True
        up_to = (weights * kept).double().cumsum(-1)
        chosen = _first_beyond(up_to, draws[:, None] * up_to[:, -1:])
        # Tokens as likely as the least candidate may be missing; they matter if one of them was kept.
        sufficed = values.masked_fill(~kept, float("inf")).amin(-1) > least
        return ids.gather(-1, chosen)[:, 0], sufficed | (width >= scaled.shape[-1])


def _masses(probabilities: torch.Tensor) -> torch.Tensor:
    """Of each block of each row ``[R, V / BLOCK]``, in float64."""
    return probabilities.view(len(probabilities), -1, BLOCK).sum(-1).double()


def _column(values: Sequence[float], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device)[:, None]


def _candidates(scaled: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """At least the ``width`` likeliest tokens of each row, ``[R, K]`` values and ids, descending; equal ones by id.

    With them the least value ``[R]``: all tokens above it are there, those of that value perhaps not all, and of those
    that cannot be none. Rows with fewer candidates than others end in impossible ones.
    """
    if width >= scaled.shape[-1]:
        values, ids = scaled.sort(dim=-1, descending=True, stable=True)
        return values, ids, values[:, -1]
    blocks = scaled.view(len(scaled), -1, _MAXIMA_BLOCK)
    maxima = blocks.amax(-1)
    if 2 * width <= maxima.shape[-1]:
        # So many blocks hold a token as likely as the likeliest of the last of them: what is likelier lies in them.
        values, chosen = maxima.topk(width)
        chosen = chosen.sort(-1).values
        near = blocks[torch.arange(len(blocks), device=blocks.device)[:, None], chosen].flatten(1)
    else:
        values, near = scaled.topk(width).values, scaled
        chosen = torch.arange(maxima.shape[-1], device=scaled.device).expand_as(maxima)
    least = values[:, -1]
    floor = least.clamp(min=torch.finfo(scaled.dtype).min)  # of a constrained row a few tokens are possible
    wanted = ~(near < floor[:, None])  # NaN too: nothing is less
    row, column = wanted.nonzero(as_tuple=True)
    counts = row.bincount(minlength=len(scaled))
    place = torch.arange(len(row), device=row.device) - (counts.cumsum(-1) - counts)[row]
    shape = (len(scaled), max(int(counts.max()), 1))
    found = chosen[row, column // _MAXIMA_BLOCK] * _MAXIMA_BLOCK + column % _MAXIMA_BLOCK
    ids = chosen.new_zeros(shape).index_put_((row, place), found)
    values = scaled.new_full(shape, float("-inf")).index_put_((row, place), near[row, column])
    values, order = values.sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, order), least


def _first_beyond(up_to: torch.Tensor, sought: torch.Tensor) -> torch.Tensor:
    """The first position ``[R, 1]`` of each row of ``up_to`` ``[R, K]``, which ascends, that is beyond ``sought``."""
    positions = torch.searchsorted(up_to, sought, right=True)
    # Rounding may put what is sought at the total itself: then it is the first position that reaches it.
    last = torch.searchsorted(up_to, up_to[:, -1:].contiguous())
    # NaN compares with nothing: whatever the model computed, a position is one of the row.
    return torch.minimum(positions, last).clamp_(max=up_to.shape[-1] - 1)

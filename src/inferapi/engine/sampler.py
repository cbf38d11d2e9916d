"""Logits to token ids: each row by its own request's parameters and its own random numbers.

A row's token depends on its own logits, parameters and seed alone, never on who else is in the batch: a
request draws one uniform number a token, and the token is where that number falls in the row's distribution
(inverse transform sampling). What a request asks to be done to its logits comes first, see ``adjustments.py``;
then, in transformers' order, temperature, top-k, top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024).

Shapes: ``R`` rows, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from inferapi.domain.generation import SamplingParams
from inferapi.engine.adjustments import Adjustments, is_adjusted
from inferapi.engine.chances import Chances, chances_of
from inferapi.engine.draws import FromAll, FromFiltered, Workspace
from inferapi.engine.matching import TokenMasks
from inferapi.engine.request import Request

_GREEDY_BELOW = 1e-5  # a division by less overflows; the likeliest token is what is meant

_Draw = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
_Way = type[FromAll | FromFiltered] | None


@dataclass(frozen=True, slots=True)
class Sampled:
    """The next token of each row; and how likely it was, by row, where a request asked for that."""

    tokens: list[int]
    chances: dict[int, Chances] = field(default_factory=dict)


class Sampler:
    """Chooses the next token of every row in a few passes over the rows that choose alike.

    Who chooses alike is found out once, for as long as the same requests come. Of a request it changes nothing but
    what it draws from; where its constraint stands changes with the token's acceptance, see ``answer.py``.
    """

    def __init__(self, eos_token_ids: Collection[int]) -> None:
        self._eos_token_ids = sorted(eos_token_ids)
        self._masks = TokenMasks()
        self._workspace = Workspace()
        self._requests: list[Request] = []
        self._groups: list[_Group] = []

    @torch.inference_mode()  # the logits are inference tensors
    def sample(self, logits: torch.Tensor, requests: Sequence[Request]) -> Sampled:
        """The next token of each request, from its row of ``logits`` ``[R, V]``."""
        if self._requests != requests:  # compares who they are, not what is in them
            self._requests = list(requests)
            self._groups = self._grouped(self._requests, logits.device)
        if len(self._groups) == 1:
            return self._choose(logits, self._groups[0])
        tokens = [0] * len(requests)
        chances: dict[int, Chances] = {}
        for group in self._groups:
            sampled = self._choose(logits[group.rows], group)
            for row, token in zip(group.rows, sampled.tokens, strict=True):
                tokens[row] = token
            chances |= {group.rows[row]: chance for row, chance in sampled.chances.items()}
        return Sampled(tokens, chances)

    def _choose(self, logits: torch.Tensor, group: _Group) -> Sampled:
        if group.takes_logits_as_they_are:
            return Sampled(likeliest(logits))
        vocabulary = logits.shape[-1]
        logits = self._workspace.floats(logits)
        group.adjustments.apply(logits)
        told = logits[group.told] if group.told else None  # a copy: draws spoil what they are made from
        if group.draw is None:
            tokens = likeliest(logits)
        else:
            draws = torch.tensor([r.random.random() for r in group.requests], dtype=torch.float64, device=logits.device)
            drawn = group.draw(logits, draws, self._workspace.spare(len(logits)))
            tokens = drawn.clamp_(max=vocabulary - 1).tolist()  # where the logits are NaN, it may be padding
        if told is None:
            return Sampled(tokens)
        numbers = [group.requests[row].sampling.top_logprobs or 0 for row in group.told]
        chances = chances_of(told, [tokens[row] for row in group.told], numbers)
        return Sampled(tokens, dict(zip(group.told, chances, strict=True)))

    def _grouped(self, requests: Sequence[Request], device: torch.device) -> list[_Group]:
        rows_of: dict[tuple[_Way, bool, bool], list[int]] = {}
        for row, request in enumerate(requests):
            rows_of.setdefault(_kind(request), []).append(row)
        groups = []
        for (way, _, is_plain), rows in rows_of.items():
            alike = [requests[row] for row in rows]
            draw = way([request.sampling for request in alike], device) if way else None
            adjustments = Adjustments(alike, self._eos_token_ids, self._masks)
            groups.append(_Group(rows, alike, draw, adjustments, takes_logits_as_they_are=is_plain))
        return groups


class _Group:
    """Requests of a batch that choose alike; ``rows`` are theirs. ``draw`` is none where the likeliest is taken.

    ``told``: the places among them of those that want to know how likely their tokens are.
    """

    def __init__(
        self,
        rows: list[int],
        requests: list[Request],
        draw: _Draw | None,
        adjustments: Adjustments,
        *,
        takes_logits_as_they_are: bool,
    ) -> None:
        self.rows = rows
        self.requests = requests
        self.draw = draw
        self.adjustments = adjustments
        self.takes_logits_as_they_are = takes_logits_as_they_are
        self.told = [row for row, request in enumerate(requests) if request.sampling.top_logprobs is not None]


def _kind(request: Request) -> tuple[_Way, bool, bool]:
    """The way that it chooses, whether it is constrained, and whether its logits are taken as they are."""
    way, tells = _way(request.sampling), request.sampling.top_logprobs is not None
    return way, request.matcher is not None, way is None and not tells and not is_adjusted(request)


def _way(params: SamplingParams) -> _Way:
    if params.temperature < _GREEDY_BELOW:
        return None
    if params.top_k == 0 and params.top_p >= 1 and params.min_p <= 0:
        return FromAll
    return FromFiltered


def likeliest(logits: torch.Tensor) -> list[int]:
    """The likeliest token of each row of ``logits`` ``[R, V]``, the first of several.

    On a CPU not by torch, whose search is ten times slower for want of vector instructions (torch 2.13).
    """
    tokens: list[int]
    if logits.device.type != "cpu":
        tokens = logits.argmax(-1).tolist()
        return tokens
    if logits.dtype in {torch.bfloat16, torch.float16}:
        # Sign and magnitude: above zero, numbers of 16 bits come in the order of their bits, and all others are less.
        bits = logits.view(torch.int16).numpy()
        tokens = bits.argmax(-1).tolist()
        if bits[np.arange(len(bits)), tokens].min(initial=1) > 0:
            return tokens
        logits = logits.float()
    tokens = logits.numpy().argmax(-1).tolist()
    return tokens

"""Logits to token ids: each row by its own request's parameters and its own random numbers.

A row's token depends on its own logits, parameters and seed alone, never on who else is in the batch: a
request draws one uniform number a token, and the token is where that number falls in the row's distribution
(inverse transform sampling). Filters follow transformers' order: repetition penalty (Keskar et al. 2019,
section 4.1), temperature, top-k, top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024).

Shapes: ``R`` rows, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import torch

from inferapi.domain.generation import SamplingParams
from inferapi.engine.draws import FromAll, FromFiltered, Workspace
from inferapi.engine.request import Request

_GREEDY_BELOW = 1e-5  # a division by less overflows; the likeliest token is what is meant

_Draw = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Sampler:
    """Chooses the next token of every row in a few passes over the rows that choose alike.

    Who chooses alike is found out once, for as long as the same requests come.
    """

    def __init__(self, eos_token_ids: Collection[int]) -> None:
        self._eos_token_ids = sorted(eos_token_ids)
        self._workspace = Workspace()
        self._requests: list[Request] = []
        self._groups: list[_Group] = []

    @torch.inference_mode()  # the logits are inference tensors
    def sample(self, logits: torch.Tensor, requests: Sequence[Request]) -> list[int]:
        """The next token of each request, from its row of ``logits`` ``[R, V]``."""
        if self._requests != requests:  # compares who they are, not what is in them
            self._requests = list(requests)
            self._groups = _grouped(self._requests, logits.device)
        if len(self._groups) == 1:
            return self._choose(logits, self._groups[0])
        tokens = [0] * len(requests)
        for group in self._groups:
            for row, token in zip(group.rows, self._choose(logits[group.rows], group), strict=True):
                tokens[row] = token
        return tokens

    def _choose(self, logits: torch.Tensor, group: _Group) -> list[int]:
        if group.takes_logits_as_they_are:
            return likeliest(logits)
        vocabulary = logits.shape[-1]
        logits = self._workspace.floats(logits)
        if group.has_penalties:
            penalize(logits, group.requests)
        if group.has_minima:
            self._forbid_ends(logits, group.requests)
        if group.draw is None:
            return likeliest(logits)
        draws = torch.tensor([r.random.random() for r in group.requests], dtype=torch.float64, device=logits.device)
        tokens = group.draw(logits, draws, self._workspace.spare(len(logits)))
        chosen: list[int] = tokens.clamp_(max=vocabulary - 1).tolist()  # where the logits are NaN, it may be padding
        return chosen

    def _forbid_ends(self, logits: torch.Tensor, requests: Sequence[Request]) -> None:
        rows = [row for row, r in enumerate(requests) if r.num_completion_tokens < r.sampling.min_new_tokens]
        if rows:
            logits[torch.tensor(rows)[:, None], torch.tensor(self._eos_token_ids, dtype=torch.long)] = float("-inf")


class _Group:
    """Requests of a batch that choose alike; ``rows`` are theirs. ``draw`` is none where the likeliest is taken."""

    def __init__(self, rows: list[int], requests: list[Request], draw: _Draw | None) -> None:
        self.rows = rows
        self.requests = requests
        self.draw = draw
        self.has_penalties = requests[0].sampling.repetition_penalty != 1.0
        self.has_minima = any(request.sampling.min_new_tokens for request in requests)
        self.takes_logits_as_they_are = draw is None and not self.has_penalties and not self.has_minima


def _grouped(requests: Sequence[Request], device: torch.device) -> list[_Group]:
    rows_of: dict[tuple[type[FromAll | FromFiltered] | None, bool], list[int]] = {}
    for row, request in enumerate(requests):
        params = request.sampling
        rows_of.setdefault((_way(params), params.repetition_penalty != 1.0), []).append(row)
    groups = []
    for (way, _), rows in rows_of.items():
        alike = [requests[row] for row in rows]
        groups.append(_Group(rows, alike, way([request.sampling for request in alike], device) if way else None))
    return groups


def _way(params: SamplingParams) -> type[FromAll | FromFiltered] | None:
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


def penalize(logits: torch.Tensor, requests: Sequence[Request]) -> None:
    """Make the tokens that each request has seen less likely in its row of ``logits`` ``[R, V]``, in place."""
    seen = [request.seen.follow(request.tokens) for request in requests]
    counts = [len(ids) for ids in seen]
    starts = np.arange(len(requests)) * logits.shape[-1]
    penalties = np.asarray([request.sampling.repetition_penalty for request in requests], dtype=np.float32)
    positions = torch.from_numpy(np.concatenate(seen) + np.repeat(starts, counts)).to(logits.device)
    penalty = torch.from_numpy(np.repeat(penalties, counts)).to(logits.device)
    flat = logits.view(-1)
    # All are read before any is written: a token that was seen twice is penalized once.
    scores = flat.index_select(0, positions)
    flat.scatter_(0, positions, torch.where(scores < 0, scores * penalty, scores / penalty))

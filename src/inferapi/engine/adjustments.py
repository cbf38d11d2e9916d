"""What requests ask to be done to their logits before a token is chosen, a few operations for all rows alike.

In this order: biases, repetition penalty (Keskar et al. 2019, section 4.1), presence and frequency penalty (OpenAI's
API reference: ``mu[j] - c[j] * frequency - (c[j] > 0) * presence``, the answer's tokens counted), constraint, least
length. A constraint that leaves nothing but the end overrules a least length.

Shapes: ``R`` rows, ``V`` columns, ``T`` tokens of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from inferapi.domain.generation import SamplingParams
from inferapi.engine.matching import TokenMasks
from inferapi.engine.request import Request

_IMPOSSIBLE = float("-inf")

_Rows = list[tuple[int, Request]]


class Adjustments:
    """Those of requests that choose alike, each the owner of the row of its place; either all are constrained or none.

    Who asks for what is found out once, for as long as the same requests come.
    """

    def __init__(self, requests: Sequence[Request], eos_token_ids: Sequence[int], masks: TokenMasks) -> None:
        self._eos_token_ids = list(eos_token_ids)
        self._masks = masks
        self._matchers = [request.matcher for request in requests if request.matcher is not None]
        self._biased = _rows(requests, _is_biased)
        self._bias: tuple[int, torch.Tensor, torch.Tensor] | None = None
        self._penalized = _rows(requests, _is_penalized)
        self._counted = _rows(requests, _is_counted)
        self._minimal = _rows(requests, _has_minimum)

    def apply(self, logits: torch.Tensor) -> None:
        """Change ``logits`` ``[R, V]`` in place."""
        if self._biased:
            self._add_bias(logits)
        if self._penalized:
            _penalize_seen(logits, self._penalized)
        if self._counted:
            _penalize_counted(logits, self._counted)
        if self._matchers:
            self._constrain(logits)
        elif self._minimal:
            self._forbid_ends(logits)

    def _add_bias(self, logits: torch.Tensor) -> None:
        width = logits.shape[-1]
        if self._bias is None or self._bias[0] != width:
            known = [
                (row * width + token, bias)
                for row, request in self._biased
                for token, bias in request.sampling.logit_bias
                if 0 <= token < width  # one of another row otherwise
            ]
            positions = torch.tensor([position for position, _ in known], dtype=torch.long, device=logits.device)
            biases = torch.tensor([bias for _, bias in known], dtype=logits.dtype, device=logits.device)
            self._bias = width, positions, biases
        logits.view(-1).index_add_(0, self._bias[1], self._bias[2])

    def _constrain(self, logits: torch.Tensor) -> None:
        allowed = self._masks.allowed(self._matchers)
        ends = [token for token in self._eos_token_ids if token < allowed.shape[1]]
        for row, request in self._minimal:
            if request.num_completion_tokens < request.sampling.min_new_tokens:
                may_end = allowed[row, ends]
                allowed[row, ends] = False
                if not allowed[row].any():
                    allowed[row, ends] = may_end
        width = min(allowed.shape[1], logits.shape[1])  # models pad their output, and tokenizers outgrow it
        forbidden = torch.from_numpy(~allowed[:, :width]).to(logits.device)
        logits[:, :width].masked_fill_(forbidden, _IMPOSSIBLE)
        logits[:, width:] = _IMPOSSIBLE

    def _forbid_ends(self, logits: torch.Tensor) -> None:
        rows = [row for row, r in self._minimal if r.num_completion_tokens < r.sampling.min_new_tokens]
        if rows:
            logits[torch.tensor(rows)[:, None], torch.tensor(self._eos_token_ids, dtype=torch.long)] = _IMPOSSIBLE


def is_adjusted(request: Request) -> bool:
    """Whether anything is to be done to this request's logits."""
    sampling = request.sampling
    wishes = (_is_biased, _is_penalized, _is_counted, _has_minimum)
    return request.matcher is not None or any(wish(sampling) for wish in wishes)


def _is_biased(sampling: SamplingParams) -> bool:
    return bool(sampling.logit_bias)


def _is_penalized(sampling: SamplingParams) -> bool:
    return sampling.repetition_penalty != 1.0


def _is_counted(sampling: SamplingParams) -> bool:
    return sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0


def _has_minimum(sampling: SamplingParams) -> bool:
    return sampling.min_new_tokens > 0


def _rows(requests: Sequence[Request], wants: Callable[[SamplingParams], bool]) -> _Rows:
    return [(row, request) for row, request in enumerate(requests) if wants(request.sampling)]


def _penalize_seen(logits: torch.Tensor, rows: _Rows) -> None:
    """Make the tokens that each request has seen less likely in its row of ``logits`` ``[R, V]``, in place."""
    seen = [request.seen.follow(request.tokens) for _, request in rows]
    penalties = np.asarray([request.sampling.repetition_penalty for _, request in rows], dtype=np.float32)
    positions = _positions(logits, rows, seen)
    penalty = torch.from_numpy(np.repeat(penalties, [len(ids) for ids in seen])).to(logits.device)
    flat = logits.view(-1)
    # All are read before any is written: a token that was seen twice is penalized once.
    scores = flat.index_select(0, positions)
    flat.scatter_(0, positions, torch.where(scores < 0, scores * penalty, scores / penalty))


def _penalize_counted(logits: torch.Tensor, rows: _Rows) -> None:
    """Make the tokens of each request's answer less likely in its row of ``logits`` ``[R, V]``, in place."""
    counted = [request.counted.follow(request.tokens, request.num_prompt_tokens) for _, request in rows]
    lengths = [len(ids) for ids, _ in counted]
    presence = np.asarray([request.sampling.presence_penalty for _, request in rows], dtype=np.float32)
    frequency = np.asarray([request.sampling.frequency_penalty for _, request in rows], dtype=np.float32)
    counts = np.concatenate([counts for _, counts in counted])
    penalty = torch.from_numpy(counts * np.repeat(frequency, lengths) + np.repeat(presence, lengths))
    positions = _positions(logits, rows, [ids for ids, _ in counted])
    flat = logits.view(-1)
    flat.scatter_(0, positions, flat.index_select(0, positions) - penalty.to(logits.device))


def _positions(logits: torch.Tensor, rows: _Rows, ids: Sequence[npt.NDArray[np.int64]]) -> torch.Tensor:
    """Where the ids of each row are in ``logits`` ``[R, V]``, flattened."""
    starts = np.asarray([row for row, _ in rows], dtype=np.int64) * logits.shape[-1]
    return torch.from_numpy(np.concatenate(ids) + np.repeat(starts, [len(each) for each in ids])).to(logits.device)

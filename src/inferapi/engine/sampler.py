"""Logits to token ids: each row by its own request's parameters and its own random numbers.

A row's token depends on its own logits, parameters and seed alone, never on who else is in the batch: a
request draws one uniform number a token, and the token is where that number falls in the row's distribution
(inverse transform sampling). Filters follow transformers' order: repetition penalty (Keskar et al. 2019,
section 4.1), temperature, top-k, top-p (Holtzman et al. 2020), min-p (Nguyen et al. 2024).

Shapes: ``R`` rows, ``V`` vocabulary, ``K`` candidates kept for filtering.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch

from inferapi.engine.request import Request

_CANDIDATES = 512
_GREEDY_BELOW = 1e-5  # a division by less overflows; the likeliest token is what is meant


class Sampler:
    """Chooses the next token of every row in a few passes over the whole batch."""

    def __init__(self, eos_token_ids: Collection[int]) -> None:
        self._eos_token_ids = sorted(eos_token_ids)

    @torch.inference_mode()  # the logits are inference tensors, and are changed in place
    def sample(self, logits: torch.Tensor, requests: Sequence[Request]) -> list[int]:
        """The next token of each request, from its row of ``logits`` ``[R, V]`` (changed in place)."""
        logits = logits.float()
        self._penalize(logits, requests)
        for row, request in enumerate(requests):
            if request.num_completion_tokens < request.sampling.min_new_tokens:
                logits[row, self._eos_token_ids] = float("-inf")
        rows_by_way: dict[_Choose, list[int]] = {}
        for row, request in enumerate(requests):
            rows_by_way.setdefault(_way(request), []).append(row)
        tokens = [0] * len(requests)
        for choose, rows in rows_by_way.items():
            part = logits if len(rows) == len(requests) else logits[rows]
            for row, token in zip(rows, choose(part, [requests[row] for row in rows]), strict=True):
                tokens[row] = token
        return tokens

    def _penalize(self, logits: torch.Tensor, requests: Sequence[Request]) -> None:
        for row, request in enumerate(requests):
            penalty = request.sampling.repetition_penalty
            if penalty != 1.0:
                seen = torch.tensor(request.tokens, device=logits.device)
                scores = logits[row, seen]
                logits[row, seen] = torch.where(scores < 0, scores * penalty, scores / penalty)


_Choose = Callable[[torch.Tensor, Sequence[Request]], list[int]]


def _way(request: Request) -> _Choose:
    sampling = request.sampling
    if sampling.temperature < _GREEDY_BELOW:
        return _choose_likeliest
    if sampling.top_k == 0 and sampling.top_p >= 1 and sampling.min_p <= 0:
        return _choose_from_all
    return _choose_from_filtered


def _choose_likeliest(logits: torch.Tensor, _: Sequence[Request]) -> list[int]:
    return logits.argmax(-1).tolist()


def _choose_from_all(logits: torch.Tensor, requests: Sequence[Request]) -> list[int]:
    """Draw from the softmax of each row of ``logits`` ``[R, V]``."""
    scaled, draws = _scale_and_draw(logits, requests)
    return _invert(torch.softmax(scaled, -1).cumsum(-1), draws).tolist()


def _choose_from_filtered(logits: torch.Tensor, requests: Sequence[Request]) -> list[int]:
    """Draw from each row's kept tokens, looking at the likeliest candidates only where they suffice."""
    scaled, draws = _scale_and_draw(logits, requests)
    vocabulary = scaled.shape[-1]
    width = min(vocabulary, max(_CANDIDATES, *(2 * request.sampling.top_k for request in requests)))
    tokens, sufficed = _filter_and_draw(scaled, draws, requests, width)
    for row, enough in enumerate(sufficed):
        if not enough:
            again = slice(row, row + 1)
            tokens[again], _ = _filter_and_draw(scaled[again], draws[again], requests[again], vocabulary)
    return tokens


def _scale_and_draw(logits: torch.Tensor, requests: Sequence[Request]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits over temperature ``[R, V]``, and one uniform number a row ``[R]``."""
    temperature = torch.tensor([request.sampling.temperature for request in requests], device=logits.device)
    draws = torch.tensor([request.random.random() for request in requests], device=logits.device)
    return logits / temperature[:, None], draws


def _filter_and_draw(
    scaled: torch.Tensor, draws: torch.Tensor, requests: Sequence[Request], width: int
) -> tuple[list[int], list[bool]]:
    """Filter the ``width`` likeliest tokens; also whether no token beyond them could have been kept."""
    device, vocabulary = scaled.device, scaled.shape[-1]
    top_k = torch.tensor([r.sampling.top_k or vocabulary for r in requests], device=device)[:, None]
    top_p = torch.tensor([r.sampling.top_p for r in requests], device=device)[:, None]
    min_p = torch.tensor([r.sampling.min_p for r in requests], device=device)[:, None]

    values, ids = _candidates(scaled, width)
    last = values[:, -1]
    among_k = torch.arange(width, device=device) < top_k
    values = values.masked_fill(~among_k, float("-inf"))
    everything = torch.where(top_k <= width, values.logsumexp(-1, keepdim=True), scaled.logsumexp(-1, keepdim=True))
    probabilities = torch.exp(values - everything)
    likelier = probabilities.cumsum(-1) - probabilities  # mass of the tokens before this one
    # top_p 1 keeps all, also where rounding makes the mass before the last tokens reach 1.
    kept = among_k & ((likelier < top_p) | (top_p >= 1)) & (probabilities >= min_p * probabilities[:, :1])
    kept[:, 0] = True
    positions = _invert((probabilities * kept).cumsum(-1), draws)
    # Tokens as likely as the last candidate may lie beyond; they matter if one of them was kept.
    sufficed = (values.masked_fill(~kept, float("inf")).amin(-1) > last) | (width == vocabulary)
    return ids.gather(-1, positions[:, None])[:, 0].tolist(), sufficed.tolist()


def _candidates(scaled: torch.Tensor, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest ``width`` tokens of each row, ``[R, K]`` values and ids, descending; equal ones by id.

    ``topk`` alone leaves equal values in an order that depends on the batch, and bf16 makes many of them equal.
    """
    values, ids = scaled.topk(width)
    by_id = ids.argsort(-1)
    values, order = values.gather(-1, by_id).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, by_id).gather(-1, order)


def _invert(cumulative: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The first position in each row of ``cumulative`` ``[R, K]`` beyond ``draws`` of its last value."""
    total = cumulative[:, -1:].contiguous()
    positions = torch.searchsorted(cumulative, draws[:, None].to(cumulative.dtype) * total, right=True)
    # Rounding may put a draw of almost 1 at the total itself: then it is the first position that reaches it.
    last = torch.searchsorted(cumulative, total)
    # NaN compares with nothing: whatever the model computed, a position is one of the row.
    return torch.minimum(positions, last).clamp_(max=cumulative.shape[-1] - 1)[:, 0]

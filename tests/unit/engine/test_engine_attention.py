"""Attention over the paged cache is the textbook formula, however the tokens arrive."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from inferapi.domain.model import LayerShape
from inferapi.engine.attention import PagedAttention, UnsupportedAttentionError, refuse_unknown
from inferapi.engine.kv_cache import KvCache
from inferapi.engine.request import Request
from inferapi.engine.scheduler import Plan, Segment

BLOCKS, HEAD_DIM = 80, 8
LAYER = SimpleNamespace(layer_idx=0)


@dataclass(frozen=True)
class Kind:
    """One way in which architectures differ."""

    kv_heads: int = 2
    group: int = 1
    window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    value_dim: int = HEAD_DIM
    scaling: float | None = None


@dataclass
class Told:
    """What a model computed for all tokens of a request: ``[H*G, L, D]``, ``[H, L, D]``, ``[H, L, D]``."""

    request: Request
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor


def formula(kind: Kind, told: Told) -> torch.Tensor:
    """Every token against itself and those before: ``[L, H*G, D]``."""
    length = told.query.shape[1]
    keys, values = (tensor.repeat_interleave(kind.group, 0) for tensor in (told.key, told.value))
    scores = told.query @ keys.transpose(1, 2) * (kind.scaling or HEAD_DIM**-0.5)
    if kind.softcap:
        scores = kind.softcap * torch.tanh(scores / kind.softcap)
    distance = torch.arange(length)[:, None] - torch.arange(length)[None, :]
    hidden = (distance < 0) | (distance >= (kind.window or length))
    weights = torch.exp(scores.masked_fill(hidden, float("-inf")))
    total = weights.sum(-1, keepdim=True)
    if kind.sinks is not None:
        total = total + torch.exp(kind.sinks)[:, None, None]
    return (weights / total @ values).transpose(0, 1)


class Model:
    """One attention layer that is told its queries, keys and values."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        shape = LayerShape(kind.kv_heads, HEAD_DIM, kind.value_dim, kind.window)
        self.cache = KvCache([shape], BLOCKS, torch.float32, [torch.device("cpu")])
        self.attention = PagedAttention([shape], self.cache)
        self.random = torch.Generator().manual_seed(0)

    def tell(self, request: Request, blocks: Sequence[int], length: int) -> Told:
        request.blocks, request.tokens = list(blocks), [0] * length
        kind = self.kind
        return Told(
            request,
            torch.randn(kind.kv_heads * kind.group, length, HEAD_DIM, generator=self.random) * 2,
            torch.randn(kind.kv_heads, length, HEAD_DIM, generator=self.random),
            torch.randn(kind.kv_heads, length, kind.value_dim, generator=self.random),
        )

    def step(self, *spans: tuple[Told, int, int]) -> list[torch.Tensor]:
        """Compute tokens ``start`` to ``end`` of each; single tokens are decodes and come first."""
        decodes, prefills = ([s for s in spans if (s[2] - s[1] == 1) == single] for single in (True, False))
        ordered = [*decodes, *prefills]
        segments = [tuple(Segment(t.request, start, end - start) for t, start, end in s) for s in (decodes, prefills)]
        self.attention.begin(Plan(*segments))
        query, key, value = (
            torch.cat([getattr(t, name)[:, start:end] for t, start, end in ordered], 1)[None]
            for name in ("query", "key", "value")
        )
        out, weights = self.attention(
            LAYER, query, key, value, None, scaling=self.kind.scaling, softcap=self.kind.softcap, s_aux=self.kind.sinks
        )
        assert weights is None
        return list(out[0].split([end - start for _, start, end in ordered]))

    def run(self, told: Told, *borders: int) -> torch.Tensor:
        """A whole request alone, in chunks that end at ``borders`` and then token by token."""
        length = told.query.shape[1]
        points = [0, *borders, *range(borders[-1] + 1, length + 1)]
        return torch.cat([self.step((told, start, end))[0] for start, end in pairwise(points)])


KINDS = {
    "plain": Kind(),
    "grouped queries": Kind(group=3),
    "one key-value head": Kind(kv_heads=1, group=4),
    "a window smaller than a block": Kind(group=2, window=16),
    "a window larger than a block": Kind(group=2, window=100),
    "soft-capped scores": Kind(group=2, softcap=1.5),
    "sinks": Kind(group=2, sinks=torch.tensor([-1.0, 0.5, 2.0, 4.0])),
    "sinks and a window": Kind(group=2, window=30, sinks=torch.tensor([-1.0, 0.5, 2.0, 4.0])),
    "soft-capped scores and a window": Kind(group=2, window=30, softcap=3.0),
    "values narrower than keys": Kind(group=2, value_dim=4),
    "a scale of its own": Kind(group=2, scaling=0.1),
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


@kinds
@pytest.mark.parametrize("borders", [(140,), (50, 110), (64, 128), (3, 70)])
def test_prompts_in_chunks_and_then_decodes_are_the_formula(new_request, kind: Kind, borders: tuple[int, ...]) -> None:
    model = Model(kind)
    told = model.tell(new_request(), [2, 0, 1], 150)

    torch.testing.assert_close(model.run(told, *borders), formula(kind, told), atol=1e-5, rtol=1e-4)


@kinds
def test_requests_of_one_step_do_not_see_each_other(new_request, kind: Kind) -> None:
    model = Model(kind)
    short, middle, long, fresh = (
        model.tell(new_request(n), blocks, length)
        for n, (blocks, length) in enumerate([([3], 10), ([1, 5], 90), ([0, 4, 2], 160), ([6, 7], 70)])
    )
    for told in (short, middle):
        model.step((told, 0, told.query.shape[1] - 1))
    model.step((long, 0, 100))

    outputs = model.step((short, 9, 10), (middle, 89, 90), (long, 100, 160), (fresh, 0, 70))

    for told, start, output in zip((short, middle, long, fresh), (9, 89, 100, 0), outputs, strict=True):
        torch.testing.assert_close(output, formula(kind, told)[start:], atol=1e-5, rtol=1e-4)


@kinds
def test_blocks_far_apart_are_gathered_to_the_same_result(new_request, kind: Kind) -> None:
    model = Model(kind)
    first, second = model.tell(new_request(0), [39, 17], 80), model.tell(new_request(1), [30], 20)
    model.step((first, 0, 79), (second, 0, 19))

    outputs = model.step((first, 79, 80), (second, 19, 20))

    torch.testing.assert_close(outputs[0], formula(kind, first)[79:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(outputs[1], formula(kind, second)[19:], atol=1e-5, rtol=1e-4)


def test_scores_too_large_for_an_exponential_are_fine(new_request) -> None:
    model = Model(Kind(scaling=200.0))
    told = model.tell(new_request(), [0, 1], 100)

    out = model.run(told, 60)

    assert out.isfinite().all()
    best = (
        (told.query @ told.key.transpose(1, 2)).tril().masked_fill(torch.ones(100, 100).triu(1).bool(), -1e9).argmax(-1)
    )
    expected = told.value.gather(1, best[..., None].expand(-1, -1, HEAD_DIM)).transpose(0, 1)
    assert (out[-1] - expected[-1]).abs().max() < 0.1  # the winner takes all


@pytest.mark.parametrize("other", ["reused block", "companion in the batch"])
def test_not_a_number_in_one_request_does_not_reach_another(new_request, other: str) -> None:
    model = Model(Kind(group=2))
    spoiled = model.tell(new_request(0), [0], 64)
    spoiled.key, spoiled.value = (torch.full_like(t, float("nan")) for t in (spoiled.key, spoiled.value))
    model.cache.clean([0])
    model.step((spoiled, 0, 63))
    if other == "reused block":
        told = model.tell(new_request(1), [0], 20)
        model.cache.clean([0])
        outputs = [model.run(told, 10)[10:]]
    else:
        told = model.tell(new_request(1), [1], 20)
        model.cache.clean([1])
        model.step((told, 0, 10))
        outputs = [model.step((spoiled, 63, 64), (told, n, n + 1))[1] for n in range(10, 20)]

    torch.testing.assert_close(torch.cat(outputs), formula(model.kind, told)[10:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("blocks", [range(17), [0, *range(64, 80)]], ids=["in place", "gathered"])
def test_a_view_filled_up_with_spoiled_blocks_gives_the_same_result(new_request, blocks: Sequence[int]) -> None:
    model = Model(Kind(group=2))
    told = model.tell(new_request(), blocks, 17 * 64)
    for cache in (*model.cache.keys, *model.cache.values):
        cache[17:24] = float("nan")  # seven blocks that the view has and nobody owns

    out = model.run(told, 17 * 64 - 1)

    assert model.attention._step(torch.device("cpu")).decode_view(None).num_blocks == 24
    torch.testing.assert_close(out[-1], formula(model.kind, told)[-1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("mask", "kwargs", "problem"),
    [
        (torch.zeros(1), {}, "mask of its own"),
        (None, {"is_causal": False}, "later tokens"),
        (None, {"position_bias": torch.zeros(1)}, "passes position_bias"),
    ],
)
def test_what_would_change_the_result_unseen_is_refused(mask, kwargs: dict, problem: str) -> None:
    with pytest.raises(UnsupportedAttentionError, match=problem):
        refuse_unknown(mask, kwargs)


def test_what_changes_nothing_is_taken(new_request) -> None:
    model = Model(Kind())
    told = model.tell(new_request(), [0], 5)
    model.attention.begin(Plan((), (Segment(told.request, 0, 5),)))

    out, _ = model.attention(
        LAYER,
        told.query[None],
        told.key[None],
        told.value[None],
        None,
        is_causal=True,
        position_ids=torch.arange(5)[None],
        output_attentions=False,
    )

    torch.testing.assert_close(out[0], formula(model.kind, told), atol=1e-5, rtol=1e-4)

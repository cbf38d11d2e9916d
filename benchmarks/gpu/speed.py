"""Tokens a second of every contender, by how many streams there are."""

from __future__ import annotations

import gc
import itertools
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from .contenders import CONTENDERS, Prompts
from .limits import Limits
from .shapes import cost


@dataclass(frozen=True)
class Workload:
    """Answers of two lengths: what the longer ones take longer is decoding alone, whatever else there is to do."""

    streams: tuple[int, ...]
    prompt_tokens: int
    few_tokens: int
    many_tokens: int
    repetitions: int

    @property
    def context_tokens(self) -> float:
        """What a token that counts has before it, on average."""
        return self.prompt_tokens + (self.few_tokens + self.many_tokens) / 2


REAL = Workload((1, 16, 64), 128, 16, 144, 3)
TINY = Workload((1, 3), 12, 2, 8, 1)


@dataclass(frozen=True)
class Speed:
    """Medians of one contender with so many streams; tokens a second of all streams together.

    Attributes:
        total: of prompts and answers from beginning to end, answered tokens counted.
        decode: of decoding alone.
        limit: of decoding alone, as the device allows it.
    """

    model: str
    contender: str
    streams: int
    total: float
    decode: float
    limit: float


def compare(
    name: str,
    model: PreTrainedModel,
    limits: Limits,
    workload: Workload,
    tell: Callable[[str], None],
) -> tuple[list[Speed], list[str]]:
    """Every contender several times, in an order that turns; and why one that failed did."""
    took_s: dict[tuple[str, int], list[tuple[float, float]]] = {}
    failures: dict[str, str] = {}
    seeds = itertools.count()

    def prompts(streams: int) -> Prompts:
        source = random.Random(next(seeds))  # noqa: S311 - new ones each time: nothing is to be found in a cache
        return [
            [source.randrange(model.config.vocab_size) for _ in range(workload.prompt_tokens)] for _ in range(streams)
        ]

    for repetition in range(workload.repetitions):
        for contender in _turned(list(CONTENDERS), repetition):
            if contender in failures:
                continue
            tell(f"{name}: {contender}, {repetition + 1} of {workload.repetitions}")
            most_tokens = workload.prompt_tokens + workload.many_tokens
            try:
                with CONTENDERS[contender](model, max(workload.streams), most_tokens) as taken_s:
                    for streams in workload.streams:
                        taken_s(prompts(streams), workload.many_tokens)  # to warm up
                        few_s = taken_s(prompts(streams), workload.few_tokens)
                        many_s = taken_s(prompts(streams), workload.many_tokens)
                        took_s.setdefault((contender, streams), []).append((few_s, many_s))
            except Exception as error:  # noqa: BLE001 - whatever one of them has, the others are measured
                failures[contender] = (
                    f"{name}: {contender} failed: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
                )
                tell(failures[contender])
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    model_cost = cost(model)
    return [
        Speed(
            name,
            contender,
            streams,
            total=streams * workload.many_tokens / statistics.median(many_s for _, many_s in times),
            decode=streams
            * (workload.many_tokens - workload.few_tokens)
            / statistics.median(max(many_s - few_s, 1e-9) for few_s, many_s in times),
            limit=limits.tokens_per_s(model_cost, streams, workload.context_tokens),
        )
        for (contender, streams), times in took_s.items()
    ], list(failures.values())


def _turned(names: Sequence[str], by: int) -> Sequence[str]:
    by %= len(names)
    return [*names[by:], *names[:by]]

"""What the device allows, measured: how fast it reads memory, and how fast it multiplies matrices."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from .shapes import DTYPE, Cost

TRIES = 10


@dataclass(frozen=True)
class Limits:
    """Bytes a second that are read, and operations a second in bfloat16 (a multiplication and an addition are two)."""

    bandwidth: float
    matrix_rate: float

    def tokens_per_s(self, cost: Cost, streams: int, context_tokens: float) -> float:
        """The most that so many streams get together, each with so many tokens before the one computed."""
        read_s = (cost.weights_bytes + streams * context_tokens * cost.kv_bytes_per_token) / self.bandwidth
        compute_s = 2 * cost.parameters * streams / self.matrix_rate
        return streams / max(read_s, compute_s)


def measure(device: str, *, tiny: bool) -> Limits:
    """The best of ten tries each.

    Bandwidth is the faster of a sum, which only reads, and of a copy, which reads and writes as much again: neither
    kernel of PyTorch is the fastest on every device. Both work on far more than a cache holds.
    """
    num_bytes = 2**24 if tiny else 2**32
    source = torch.ones(num_bytes // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    read_s = _best_s(source.sum, device)
    copied_s = _best_s(partial(target.copy_, source), device)
    bandwidth = max(num_bytes / read_s, 2 * num_bytes / copied_s)
    del source, target
    rows = 256 if tiny else 8192
    left = torch.randn(rows, rows, device=device).to(DTYPE)
    return Limits(bandwidth, 2 * rows**3 / _best_s(partial(torch.matmul, left, left), device))


def _best_s(compute: Callable[[], object], device: str) -> float:
    times_s = []
    for _ in range(TRIES):
        started_s = time.perf_counter()
        compute()
        if device == "cuda":
            torch.cuda.synchronize()
        times_s.append(time.perf_counter() - started_s)
    return min(times_s)

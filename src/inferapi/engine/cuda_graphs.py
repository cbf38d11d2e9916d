"""Decode steps as CUDA graphs: captured once for a size, then replayed without the Python that made them.

A graph repeats the same kernels on the same addresses. So all that a step is told are numbers in one tensor that stays
where it is, see ``static_steps.py``: every step writes new ones to it, and the graph takes them from there.

The first step of a size is answered by an ordinary pass, and its graph must come to the same logits. A model whose
pass cannot be captured, or does not come to the same, runs as if there were no graphs.

Shapes: ``B`` decodes of a step, ``R`` rows of a graph, ``V`` vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

import torch

from inferapi.engine.kv_cache import KvCache
from inferapi.engine.scheduler import Plan
from inferapi.engine.static_steps import ROWS, Numbers, Size, StaticStep, static_step, step_numbers

log = logging.getLogger(__name__)

_MOST_GRAPHS = 64  # a graph of some thousand kernels takes memory of the driver's; the one used longest ago goes
_WARM_UPS = 2  # libraries choose kernels and allocate in their first passes, which must not be captured
_TOLERANCE = {torch.float32: 1e-3}  # relative, of centred logits; as when a model proves itself, see paging.py
_HALF_TOLERANCE = 0.2

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Takes a function that computes on tensors that stay where they are; returns what computes it again."""


class TakesSteps(Protocol):
    """What a graph needs of ``PagedAttention``."""

    def use(self, step: StaticStep) -> None:
        """Take ``step`` for what the next pass computes, in the place of a plan."""
        ...


@dataclass(frozen=True, slots=True)
class _Graph:
    inputs: torch.Tensor
    replay: Callable[[], None]


class DecodeGraphs:
    """The graphs of one model on one device. Not thread-safe: tensors are written in place.

    Args:
        forward: tokens and positions, ``[1, R]`` each, to logits ``[R, V]``.
        windows_tokens: of the model's layers, ``None`` among them where a layer sees all.
        num_blocks: of the cache, its last block being the scratch block, which no request may hold.
    """

    def __init__(
        self,
        forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        attention: TakesSteps,
        windows_tokens: Collection[int | None],
        *,
        num_blocks: int,
        device: torch.device,
        capture: Capture,
    ) -> None:
        self._forward = forward
        self._attention = attention
        self._windows_tokens = tuple(windows_tokens)
        self._num_blocks = num_blocks
        self._device = device
        self._capture: Capture | None = capture
        self._graphs: dict[Size, _Graph] = {}  # used longest ago first
        self._logits: torch.Tensor | None = None  # [ROWS[-1], V], one for all graphs

    @property
    def num_graphs(self) -> int:
        """How many sizes have a graph now."""
        return len(self._graphs)

    @torch.inference_mode()
    def run(self, plan: Plan, eager: Callable[[], torch.Tensor]) -> torch.Tensor | None:
        """Logits ``[B, V]`` of a plan of decodes, valid until the next; ``None`` if it must be computed otherwise.

        ``eager`` computes the plan without a graph; the first step of every size asks for it.
        """
        if self._capture is None or plan.prefills or not 0 < len(plan.decodes) <= ROWS[-1]:
            return None
        size, numbers = step_numbers(plan.decodes, self._windows_tokens, self._num_blocks)
        graph = self._graphs.pop(size, None)
        if graph is None:
            return self._begin(self._capture, size, numbers, eager())
        self._graphs[size] = graph
        graph.inputs.copy_(torch.from_numpy(numbers))
        graph.replay()
        assert self._logits is not None  # noqa: S101 - made before the first graph
        return self._logits[: len(plan.decodes)]

    def stop(self) -> None:
        """Let go of all graphs; every step is computed otherwise from now on."""
        self._graphs.clear()
        self._logits = None
        self._capture = None

    def _begin(self, capture: Capture, size: Size, numbers: Numbers, expected: torch.Tensor) -> torch.Tensor:
        """Capture a step that was computed already, and replay it; returns what was ``expected``."""
        if self._logits is None:
            self._logits = expected.new_zeros((ROWS[-1], expected.shape[-1]))
        logits = self._logits
        try:
            inputs = torch.tensor(numbers, device=self._device)
            graph = _Graph(inputs, capture(lambda: self._compute(size, inputs, logits)))
            logits.zero_()  # what warmed up left its results here
            graph.replay()
            difference = _difference(logits[: len(expected)], expected)
        except RuntimeError as error:  # CUDA's errors, those of memory too: without graphs there is more of it
            reason = str(error).partition("\n")[0]
        else:
            if difference <= _TOLERANCE.get(expected.dtype, _HALF_TOLERANCE):
                self._graphs[size] = graph
                if len(self._graphs) > _MOST_GRAPHS:
                    del self._graphs[next(iter(self._graphs))]
                log.debug("a step of %d rows is a CUDA graph, views %s", size.rows, size.views)
                return expected
            reason = f"replayed, the logits of {size.rows} rows differ by {difference:.2g}"
        log.info("decode steps are not replayed as CUDA graphs: %s", reason)
        self.stop()
        return expected

    def _compute(self, size: Size, inputs: torch.Tensor, logits: torch.Tensor) -> None:
        """What is captured: from the numbers in ``inputs`` to ``logits`` ``[64, V]``."""
        tokens, positions, step = static_step(size, inputs, self._windows_tokens)
        self._attention.use(step)
        logits[: size.rows].copy_(self._forward(tokens[None], positions[None]))


class CudaCapture:
    """Captures on one GPU. All graphs share one pool of memory: what one leaves there, the next may overwrite."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """See ``Capture``.

        Raises:
            RuntimeError: it cannot be captured: it waits for the GPU, or there is no memory.
        """
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        # The outer context puts the stream back where the inner one fails to, which is when a capture failed.
        with torch.cuda.stream(self._stream):
            for _ in range(_WARM_UPS):
                function()
            graph = torch.cuda.CUDAGraph()
            # Other threads of the process may allocate meanwhile, as long as this one does not.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                function()
        current.wait_stream(self._stream)
        return graph.replay


def cuda_decode_graphs(
    forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    attention: TakesSteps,
    windows_tokens: Collection[int | None],
    cache: KvCache,
) -> DecodeGraphs | None:
    """Graphs for a model that lies on one GPU, ``None`` for others; the last block of ``cache`` must be nobody's."""
    devices = {keys.device for keys in cache.keys}
    device = devices.pop()
    if device.type != "cuda" or devices:
        return None
    return DecodeGraphs(
        forward,
        attention,
        windows_tokens,
        num_blocks=cache.num_blocks,
        device=device,
        capture=CudaCapture(device),
    )


def _difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest relative difference of a row ``[V]``, without the rows' common offsets; NaN where one has it."""
    centred, target = (rows.float() - rows.float().mean(-1, keepdim=True) for rows in (logits, expected))
    return float(((centred - target).norm(dim=-1) / target.norm(dim=-1).clamp_min(1e-12)).max())

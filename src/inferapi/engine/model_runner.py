"""One forward pass for one plan: the batched runner, on the paged cache."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from inferapi.domain.model import MOST_TAPE_OUTPUTS, TAPE_TOKENS
from inferapi.engine.attention import PagedAttention
from inferapi.engine.cuda_graphs import cuda_decode_graphs
from inferapi.engine.kv_cache import BLOCK_TOKENS, KvCache
from inferapi.engine.native.kernels import Kernels
from inferapi.engine.native.tape import NotRepeatableError, Size, Tape, record
from inferapi.engine.request import Request
from inferapi.engine.scheduler import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

NATIVE_STEP_TOKENS, NATIVE_CHUNK_TOKENS = TAPE_TOKENS[-1], TAPE_TOKENS[-1] // 2
"""What the native kernels compute in a step, of prompts that end in it and of others: with more tokens they are hardly
faster, and a step is soon over."""


class Runner(Protocol):
    """Computes what a plan says. The step loop is its only caller."""

    def run(self, plan: Plan) -> torch.Tensor:
        """Logits ``[R, V]`` for the segments of the plan that sample, in the plan's order; valid until the next."""
        ...

    def release(self, request: Request) -> None:
        """Forget a request that finished or was cancelled."""
        ...


class BatchedRunner:
    """Flattens all tokens of a plan into one row; positions and blocks tell the requests apart.

    Steps of few tokens are written down, see ``native/tape.py``, and then repeated, if ``kernels`` are there. On one
    GPU, steps of decodes alone become CUDA graphs; the last block of the cache is theirs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        attention: PagedAttention,
        cache: KvCache,
        kernels: Kernels | None = None,
        *,
        windows_tokens: Collection[int | None] = (),
    ) -> None:
        self._model = model
        self._attention = attention
        self._cache = cache
        self._device = model.device
        self._last_device = cache.keys[-1].device  # another one where a model is spread over several GPUs
        self._kernels = kernels
        self._tapes: dict[int, tuple[Tape, Sequence[torch.Tensor]]] = {}
        self._graphs = cuda_decode_graphs(
            lambda tokens, positions: self._forward(tokens, positions, 0), attention, windows_tokens, cache
        )

    @torch.inference_mode()
    def run(self, plan: Plan) -> torch.Tensor:
        """See ``Runner``."""
        for moves in plan.moves:
            self._cache.move(moves)
        tokens: list[int] = []
        positions: list[int] = []
        last: list[int] = []  # where in the row the segments that sample end
        fresh: list[int] = []
        for segment in plan.segments:
            end = segment.start + segment.length
            tokens += segment.request.tokens[segment.start : end]
            positions += range(segment.start, end)
            if segment.samples:
                last.append(len(tokens) - 1)
            fresh += _blocks_begun(segment.request.blocks, segment.start, end)
        if not self._attention.is_native:  # native kernels never look at what is masked
            self._cache.clean(fresh)
        self._attention.begin(plan)
        if self._kernels is not None and len(tokens) <= TAPE_TOKENS[-1] and len(last) <= MOST_TAPE_OUTPUTS:
            logits = self._repeat(tokens, positions, last)
            if logits is not None:
                return logits
        # With nothing to sample one row is computed all the same: 0 would mean all of them.
        inputs = ([tokens], [positions], last or [len(tokens) - 1])
        devices = (self._device, self._device, self._last_device)

        def eager() -> torch.Tensor:
            return self._forward(*map(_tensor, inputs, devices))[: len(last)]

        logits = self._graphs.run(plan, eager) if self._graphs is not None else None
        return logits if logits is not None else eager()

    def release(self, request: Request) -> None:
        """Nothing to do: the scheduler gives the blocks back."""

    @property
    def repeats(self) -> bool:
        """Whether it repeats steps that were written down, or captured."""
        return self._kernels is not None or self._graphs is not None

    def stop_repeating(self) -> None:
        """Let go of what was written down; every step goes through the model's code from now on."""
        self._tapes.clear()
        self._kernels = None
        self._graphs = None

    def _forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, keep: torch.Tensor | int) -> torch.Tensor:
        output = self._model(input_ids=input_ids, position_ids=position_ids, use_cache=False, logits_to_keep=keep)
        logits: torch.Tensor = output.logits[0]
        return logits

    def _repeat(self, tokens: Sequence[int], positions: Sequence[int], last: Sequence[int]) -> torch.Tensor | None:
        """Logits from a tape, which is made when it is first wanted; ``None`` if there can be none."""
        assert self._kernels is not None  # noqa: S101 - asked before
        most = next(most for most in TAPE_TOKENS if most >= len(tokens))
        if most not in self._tapes:
            size = Size(most, min(most + 1, MOST_TAPE_OUTPUTS), len(tokens), len(last))
            shapes = ((1, size.tokens), (1, size.tokens), (size.outputs,))
            input_ids, position_ids, keep = inputs = [torch.zeros(shape, dtype=torch.long) for shape in shapes]
            _fill(inputs, tokens, positions, last)
            try:
                tape = record(self._kernels, lambda: self._forward(input_ids, position_ids, keep), inputs, size)
            except NotRepeatableError as error:
                log.info("steps are not repeated: %s", error)
                self.stop_repeating()
                return None
            self._tapes[most] = tape, inputs
        tape, static = self._tapes[most]
        _fill(static, tokens, positions, last)
        return tape.repeat(len(tokens), len(last))


def _tensor(numbers: object, device: torch.device) -> torch.Tensor:
    return torch.tensor(numbers, device=device)


def _fill(inputs: Sequence[torch.Tensor], *contents: Sequence[int]) -> None:
    for tensor, numbers in zip(inputs, contents, strict=True):
        tensor.view(-1)[: len(numbers)] = torch.tensor(numbers, dtype=torch.long)


def _blocks_begun(blocks: Sequence[int], start: int, end: int) -> Sequence[int]:
    """Blocks whose first token is in ``start..end``."""
    return blocks[-(-start // BLOCK_TOKENS) : -(-end // BLOCK_TOKENS)]

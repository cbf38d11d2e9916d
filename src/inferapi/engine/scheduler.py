"""Who computes what in the next step: waiting requests to slots, slots to one forward pass.

Continuous batching after Orca (Yu et al., OSDI 2022, section 3.1): the batch is made anew at every step.
Prefill in chunks beside the running decodes after Sarathi-Serve (Agrawal et al., OSDI 2024, section 4).
Pure Python: the tests drive it without a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from inferapi.domain.errors import QueueFull
from inferapi.engine.block_pool import BlockPool, Moves
from inferapi.engine.fair_queue import FairQueue, in_fair_order
from inferapi.engine.request import Phase, Request

_LEAST_SHARE = 4  # one part in so many


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of one request's tokens to compute, ``tokens[start:start + length]``."""

    request: Request
    start: int
    length: int

    @property
    def samples(self) -> bool:
        """Whether the next token follows from it: true unless more of the prompt is to come."""
        return self.start + self.length == len(self.request.tokens)


@dataclass(frozen=True, slots=True)
class Plan:
    """One forward pass: one token each for the decodes, then chunks of prompts.

    ``moves``: KV blocks to copy before it, one after the other.
    """

    decodes: tuple[Segment, ...]
    prefills: tuple[Segment, ...]
    moves: tuple[Moves, ...] = ()

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All of it, in the order of the flattened tokens."""
        return self.decodes + self.prefills


class Scheduler:
    """Owns the queue, the slots and the blocks; the step loop is its only caller.

    Args:
        max_slots: requests that run at once.
        max_waiting: requests that may wait.
        step_tokens: tokens computed in a step while some decode, theirs included: bounds how long they wait. Prompts
            get a quarter of it at the least, however many decode.
        idle_step_tokens: the same while nobody decodes.
        chunk_tokens: the same for a prompt that does not end in the step: others may come meanwhile, and wait for its
            end. ``None``: no less.
        costly_context_tokens: behind so many tokens another one costs twice what the first of a prompt does, since it
            looks at all of them; steps are as much shorter, to be over as soon. ``None``: it makes no difference.
        pool: the KV blocks; ``None`` where the model keeps its own cache.
    """

    def __init__(
        self,
        *,
        max_slots: int,
        max_waiting: int,
        step_tokens: int,
        idle_step_tokens: int,
        pool: BlockPool | None,
        chunk_tokens: int | None = None,
        costly_context_tokens: float | None = None,
    ) -> None:
        self._max_waiting = max_waiting
        self._step_tokens = step_tokens
        self._idle_step_tokens = idle_step_tokens
        self._chunk_tokens = chunk_tokens
        self._costly_context_tokens = costly_context_tokens
        self._pool = pool
        self._free_slots = list(range(max_slots - 1, -1, -1))
        self._waiting: FairQueue[Request] = FairQueue()
        self._running: list[Request] = []

    @property
    def waiting(self) -> int:
        """Requests without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> tuple[Request, ...]:
        """Requests with a slot, in order of admission."""
        return tuple(self._running)

    @property
    def is_idle(self) -> bool:
        """Nothing to compute."""
        return not (self._waiting or self._running)

    @property
    def kv_cache_usage_ratio(self) -> float:
        """Reserved part of the KV cache, 0 to 1."""
        return self._pool.usage_ratio if self._pool else 0.0

    def submit(self, request: Request) -> Request | None:
        """Queue a request.

        Returns the one that had to leave the queue for it, if any: the last one of the owner that has the most there.

        Raises:
            QueueFull: it would have to wait, and too many do already, none of them of an owner that has more there.
        """
        displaced = None
        if len(self._waiting) >= self._max_waiting + len(self._free_slots):
            displaced = self._waiting.gives_way_to(request.salt)
            if displaced is None:
                raise QueueFull(waiting=len(self._waiting))
            self._waiting.remove(displaced)
        self._waiting.push(request)
        return displaced

    def plan(self, now_s: float) -> Plan | None:
        """Admit who fits, and say what the next forward pass computes; ``None`` when there is nothing."""
        self._admit(now_s)
        decodes = tuple(
            Segment(request, request.num_computed_tokens, 1)
            for request in self._running
            if request.phase is Phase.DECODE
        )
        prefills, moves = self._plan_prefills(len(decodes))
        if not decodes and not prefills:
            return None
        for segment in (*decodes, *prefills):
            self._take_blocks(segment)
        if self._pool is not None:
            moves.append(self._pool.collect_moves())
        return Plan(decodes, tuple(prefills), tuple(batch for batch in moves if batch))

    def _plan_prefills(self, num_decodes: int) -> tuple[list[Segment], list[Moves]]:
        """Chunks of prompts: an owner's with the least left first, so that a short one never waits for a long one.

        Owners share the step: many prompts of one come in turns with those of the others. A quarter is the oldest
        prompt's, so that it is not overtaken for ever.
        """
        most = self._step_tokens if num_decodes else self._idle_step_tokens
        budget = self._left(most, num_decodes)
        chunk_budget = self._left(min(self._chunk_tokens or most, most), num_decodes)
        waiting = [request for request in self._running if request.phase is Phase.PREFILL]
        kept = share = min(chunk_budget // _LEAST_SHARE, self._cost(waiting[0])) if waiting else 0
        prefills: list[Segment] = []
        moves: list[Moves] = []
        for request in in_fair_order(waiting, lambda request: request.num_uncomputed_tokens):
            room, chunk_room = budget - kept, chunk_budget - kept
            if request is waiting[0]:
                kept, room, chunk_room = 0, budget, max(chunk_budget, share)
            if chunk_room < 1 and self._cost(request) > room:
                continue
            if not request.blocks:
                moves.append(self._adopt_blocks(request))
            segment = self._chunk(request, room if self._cost(request) <= room else min(chunk_room, room))
            prefills.append(segment)
            cost = self._cost(request, segment.length)
            budget, chunk_budget = budget - cost, chunk_budget - cost
        return prefills, moves

    @staticmethod
    def _left(tokens: int, num_decodes: int) -> float:
        """For prompts, beside so many that decode."""
        return float(max(tokens - num_decodes, tokens // _LEAST_SHARE) if num_decodes else tokens)

    def _chunk(self, request: Request, budget: float) -> Segment:
        """As much of a prompt as a budget pays for, one token at the least."""
        start, most = request.num_computed_tokens, request.num_uncomputed_tokens
        far = self._costly_context_tokens
        if far is not None:  # solved for the length: length * (1 + (start + length / 2) / far) = budget
            first = 1 + start / far
            budget = far * (math.sqrt(first * first + 2 * budget / far) - first)
        return Segment(request, start, min(max(int(budget), 1), most))

    def _cost(self, request: Request, length: int | None = None) -> float:
        """Of its next ``length`` tokens, or of all that are left, in first tokens of a prompt."""
        length = request.num_uncomputed_tokens if length is None else length
        if self._costly_context_tokens is None:
            return length
        return length * (1 + (request.num_computed_tokens + length / 2) / self._costly_context_tokens)

    def advance(self, segment: Segment) -> None:
        """A segment of the last plan was computed; blocks that it filled serve later prompts from now on."""
        request = segment.request
        request.num_computed_tokens += segment.length
        if self._pool is not None:
            first, last = segment.start // self._pool.block_tokens, self._num_full_blocks(request)
            digests = request.digests(self._pool.block_tokens, first, last)
            for block, digest in zip(request.blocks[first:last], digests, strict=True):
                self._pool.register(block, digest)

    def give_up(self, requests: Sequence[Request]) -> None:
        """The last plan was not computed, or in part: take these requests out of the batch.

        Its moves may not have been made, so what was kept for later prompts is forgotten. The requests that go on
        hold only what was in its place before: none of them began in that plan.
        """
        for request in requests:
            self.remove(request)
        if self._pool is not None:
            self._pool.forget()

    def remove(self, request: Request) -> None:
        """Take a finished or cancelled request out of the batch or the queue, and its memory back.

        Its full blocks serve later prompts until they are needed for something else.
        """
        if request.slot is None:
            self._waiting.remove(request)
            return
        self._running.remove(request)
        self._free_slots.append(request.slot)
        self._waiting.give_back(request.salt)
        request.slot = None
        if self._pool is not None:
            digests = tuple(request.digests(self._pool.block_tokens, 0, self._num_full_blocks(request)))
            self._pool.give_back(request.blocks, digests, reserved=request.reserved_blocks)
            request.blocks, request.reserved_blocks = [], 0

    def _admit(self, now_s: float) -> None:
        # Owners in turns, and first come, first served within one: the head of the queue waits for blocks rather than
        # being overtaken for ever by smaller requests.
        while self._free_slots and (request := self._waiting.head()) is not None:
            if self._pool is not None:
                # The last token is sampled but never fed back, so it needs no place in the cache.
                needed = self._pool.blocks_for(max(request.max_tokens - 1, 1))
                if not self._pool.reserve(needed):
                    return
                request.reserved_blocks = needed
            self._waiting.take()
            self._waiting.hold(request.salt)
            request.slot = self._free_slots.pop()
            request.admitted_s = now_s
            self._running.append(request)

    def _num_full_blocks(self, request: Request) -> int:
        """Blocks that are computed to their last token, and so will not change."""
        return request.num_computed_tokens // self._pool.block_tokens if self._pool is not None else 0

    def _adopt_blocks(self, request: Request) -> Moves:
        """Begin a prompt where an earlier one with the same beginning left off, if there was one."""
        if self._pool is None:
            return ()
        # One token at the least is computed: the next one follows from its logits.
        most = (request.num_prompt_tokens - 1) // self._pool.block_tokens
        request.blocks = self._pool.adopt(request.digests(self._pool.block_tokens, 0, most))
        request.num_cached_tokens = len(request.blocks) * self._pool.block_tokens
        request.num_computed_tokens = request.num_cached_tokens
        return self._pool.collect_moves()

    def _take_blocks(self, segment: Segment) -> None:
        if self._pool is None:
            return
        blocks = segment.request.blocks
        for _ in range(self._pool.blocks_for(segment.start + segment.length) - len(blocks)):
            blocks.append(self._pool.take())

"""One request inside the engine: its tokens, its place, its clock."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from inferapi.domain.generation import FinishReason, SamplingParams, Timings, Usage
from inferapi.engine.matching import AnswerMatcher
from inferapi.engine.prefix_cache import block_digest, salt_digest
from inferapi.engine.seen_tokens import CountedTokens, SeenTokens


class Phase(StrEnum):
    """What a request needs next."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Request:
    """A prompt on its way to an answer.

    Attributes:
        tokens: the prompt's token ids, then the generated ones.
        salt: whose request it is; owners take turns, and keys and values are reused within one salt only.
        matcher: how far the answer has come in its constraint, if it has one.
        num_computed_tokens: how many leading ``tokens`` have their keys and values in the cache.
        num_cached_tokens: how many of them were there already when the request began.
        slot: the place in the batch while running.
        blocks: the KV blocks that hold the computed tokens, in order.
        reserved_blocks: blocks that are promised to this request, taken or not.
        arrived_s, admitted_s, first_token_s, last_token_s: on the system's monotonic clock.
    """

    request_id: int
    tokens: list[int]
    num_prompt_tokens: int
    sampling: SamplingParams
    arrived_s: float
    dropped_turns: int = 0
    salt: str = ""
    matcher: AnswerMatcher | None = None
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    slot: int | None = None
    blocks: list[int] = field(default_factory=list)
    reserved_blocks: int = 0
    admitted_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    finish_reason: FinishReason | None = None
    random: random.Random = field(init=False)
    seen: SeenTokens = field(init=False, default_factory=SeenTokens)
    counted: CountedTokens = field(init=False, default_factory=CountedTokens)
    _digests: list[bytes] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.sampling.seed)  # noqa: S311 - sampling, not a secret

    @property
    def phase(self) -> Phase:
        """Derived, so that it cannot disagree with the tokens."""
        if self.finish_reason is not None:
            return Phase.FINISHED
        if self.slot is None:
            return Phase.WAITING
        return Phase.PREFILL if self.num_uncomputed_tokens > 1 or not self.num_completion_tokens else Phase.DECODE

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens whose keys and values the next forward passes must compute."""
        return len(self.tokens) - self.num_computed_tokens

    @property
    def num_completion_tokens(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.num_prompt_tokens

    @property
    def max_tokens(self) -> int:
        """The most tokens this request can ever hold."""
        return self.num_prompt_tokens + self.sampling.max_new_tokens

    def usage(self) -> Usage:
        """Tokens counted so far."""
        return Usage(
            self.num_prompt_tokens, self.num_completion_tokens, self.dropped_turns, cached_tokens=self.num_cached_tokens
        )

    def digests(self, block_tokens: int, first: int, last: int) -> Iterator[bytes]:
        """What the full blocks ``first`` to before ``last`` are known by; made when asked for, and then kept."""
        for nth in range(first, last):
            while len(self._digests) <= nth:
                parent = self._digests[-1] if self._digests else salt_digest(self.salt)
                start = len(self._digests) * block_tokens
                self._digests.append(block_digest(parent, self.tokens[start : start + block_tokens]))
            yield self._digests[nth]

    def timings(self, now_s: float) -> Timings:
        """Where the time went, up to ``now_s``."""
        first_s = self.first_token_s if self.first_token_s is not None else now_s
        admitted_s = self.admitted_s if self.admitted_s is not None else now_s
        later_tokens = max(self.num_completion_tokens - 1, 1)
        return Timings(
            queue_s=admitted_s - self.arrived_s,
            time_to_first_token_s=first_s - self.arrived_s,
            inter_token_latency_s=(now_s - first_s) / later_tokens,
            total_s=now_s - self.arrived_s,
        )

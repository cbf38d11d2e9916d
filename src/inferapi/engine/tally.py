"""What the step loop did, counted until somebody asks."""

from __future__ import annotations

from inferapi.domain.telemetry import FirstToken, StepTally
from inferapi.engine.request import Request


class Tally:
    """Counts tokens as they are chosen, and the time between them, whatever becomes of their request.

    Tokens of one step have the same time, and mostly the same one before: their gaps are told together. So a step of a
    full batch takes one number across the process border, where vLLM observes every token by itself
    (``vllm/v1/metrics/stats.py``).
    """

    def __init__(self) -> None:
        self._prompt_tokens = self._cached_tokens = self._generation_tokens = 0
        self._firsts: list[FirstToken] = []
        self._gaps: dict[float, int] = {}

    def token(self, request: Request, now_s: float) -> None:
        """A token of its answer was chosen at ``now_s``, on the clock on which it arrived."""
        self._generation_tokens += 1
        before_s, request.last_token_s = request.last_token_s, now_s
        if before_s is not None:
            gap_s = now_s - before_s
            self._gaps[gap_s] = self._gaps.get(gap_s, 0) + 1
            return
        self._prompt_tokens += request.num_prompt_tokens
        self._cached_tokens += request.num_cached_tokens
        timings = request.timings(now_s)
        self._firsts.append(FirstToken(timings.queue_s, timings.time_to_first_token_s))

    def take(self) -> StepTally | None:
        """What was counted since the last time; ``None`` for nothing."""
        if not self._generation_tokens:
            return None
        taken = StepTally(
            self._prompt_tokens,
            self._cached_tokens,
            self._generation_tokens,
            tuple(self._firsts),
            tuple(self._gaps.items()),
        )
        self._prompt_tokens = self._cached_tokens = self._generation_tokens = 0
        self._firsts.clear()
        self._gaps.clear()
        return taken

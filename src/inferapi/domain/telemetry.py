"""What is measured while the server works: the port, and what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Protocol

from inferapi.domain.errors import HistoryNotSaved, InferapiError, leaves
from inferapi.domain.states import ModelStatus


class LoadOutcome(StrEnum):
    """How a load ended."""

    LOADED = "loaded"
    REFUSED = "refused"
    FAILED = "failed"
    CANCELLED = "cancelled"
    RESTORED = "restored"
    RESTORE_FAILED = "restore_failed"


class UnloadReason(StrEnum):
    """Why a model left memory."""

    IDLE = "idle"
    ASKED = "asked"
    REPLACED = "replaced"
    EVICTED = "evicted"
    SHUTDOWN = "shutdown"
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True)
class FirstToken:
    """The prompt of a request is computed, and the first token of its answer chosen. Times count from arrival."""

    queue_s: float
    time_to_first_token_s: float


@dataclass(frozen=True, slots=True)
class StepTally:
    """What an engine did since it last told.

    Attributes:
        prompt_tokens: of the prompts in ``firsts``, whole; for embeddings, of the texts that became vectors.
        cached_tokens: those of ``prompt_tokens`` whose keys and values were in the cache already.
        generation_tokens: tokens of answers, those included that nobody waits for any more.
        firsts: one a request that said its first token.
        gaps: the time since the token before, and how many tokens had that very one.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generation_tokens: int = 0
    firsts: tuple[FirstToken, ...] = ()
    gaps: tuple[tuple[float, int], ...] = ()


UNROUTED_CODES = ("not_found", "method_not_allowed")
"""What a request is told whose path or method is not there: no errors of the tree, but told and counted like them."""


def counts_as_rejected(error: InferapiError) -> bool:
    """Whether a request that is told this error is counted by it, and not by what its engine made of it.

    What an engine refuses before it begins (a full queue, a prompt that is too long) is rejected, and so is who waited
    for a model whose process died on its way into memory. A generation that failed in an engine was counted as such
    (``is_counted``); and one whose turn was not stored had been finished.
    """
    return not (error.is_counted or isinstance(error, HistoryNotSaved))


def rejection_codes() -> frozenset[str]:
    """Every code that a request can be rejected with."""
    return frozenset(leaf.code for leaf in leaves() if leaf is not HistoryNotSaved) | set(UNROUTED_CODES)


class Telemetry(Protocol):
    """Hears what happened, in the moment in which it did. A method returns at once, and never raises.

    Called on the event loop alone. ``code`` is that of an error of the tree. A ``model`` may be any name that a client
    chose: it is for the telemetry to keep what it makes of names bounded.
    """

    def engine_stepped(self, model: str, tally: StepTally) -> None:
        """An engine computed."""
        ...

    def request_finished(self, model: str, finish_reason: str, total_s: float) -> None:
        """An answer, or the vectors of all texts, came to an end of their own, so long after arrival."""
        ...

    def request_failed(self, model: str, code: str) -> None:
        """An engine took the request on, and could not finish it: a ``GenerationFailed``."""
        ...

    def request_aborted(self, model: str) -> None:
        """Nobody waits for the answer any more, and it had not come to an end."""
        ...

    def request_rejected(self, code: str) -> None:
        """A request was told an error that ``counts_as_rejected``, or one of ``UNROUTED_CODES``."""
        ...

    def load_ended(self, model: str, outcome: LoadOutcome, duration_s: float) -> None:
        """A load ended, so long after it was asked for."""
        ...

    def model_unloaded(self, model: str, reason: UnloadReason) -> None:
        """A model left memory."""
        ...

    def session_store_failed(self, code: str) -> None:
        """An operation of the session store failed: a ``SessionProblem`` of the store's making."""
        ...


class Metrics(Telemetry, Protocol):
    """Telemetry that can be read at any time, as one page."""

    media_type: ClassVar[str]

    def page(self, models: Sequence[ModelStatus]) -> bytes:
        """All that was heard, and how busy ``models`` are."""
        ...


class SilentMetrics:
    """``Metrics`` that keep nothing."""

    media_type: ClassVar[str] = "text/plain; charset=utf-8"

    def engine_stepped(self, model: str, tally: StepTally) -> None:
        """See ``Telemetry``."""

    def request_finished(self, model: str, finish_reason: str, total_s: float) -> None:
        """See ``Telemetry``."""

    def request_failed(self, model: str, code: str) -> None:
        """See ``Telemetry``."""

    def request_aborted(self, model: str) -> None:
        """See ``Telemetry``."""

    def request_rejected(self, code: str) -> None:
        """See ``Telemetry``."""

    def load_ended(self, model: str, outcome: LoadOutcome, duration_s: float) -> None:
        """See ``Telemetry``."""

    def model_unloaded(self, model: str, reason: UnloadReason) -> None:
        """See ``Telemetry``."""

    def session_store_failed(self, code: str) -> None:
        """See ``Telemetry``."""

    def page(self, models: Sequence[ModelStatus]) -> bytes:
        """See ``Metrics``."""
        del models
        return b""


SILENT = SilentMetrics()
"""Where nobody measures."""

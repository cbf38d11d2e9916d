"""Traces: what a request says about where it comes from, and the port that tells others what became of it."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Protocol

from inferapi.domain.ports import EngineLauncher


@dataclass(frozen=True, slots=True)
class TraceParent:
    """Where in whose trace a request was made (W3C Trace Context, section 3.2).

    Attributes:
        trace_id: 32 hexadecimal digits in lower case, not all of them 0.
        span_id: 16 of them, likewise: of the caller's span.
        is_sampled: the caller may have recorded its side.
    """

    trace_id: str
    span_id: str
    is_sampled: bool


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request as it came in.

    Attributes:
        method: of HTTP, one of the known ones, or ``_OTHER``.
        request_id: as the log and the client know it.
        parent: the caller's span, if it told a good one.
    """

    method: str
    request_id: str
    parent: TraceParent | None = None


class RequestTrace(Protocol):
    """One request, from its first byte to the last of its answer."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits: the caller's, or new ones."""
        ...

    def end(self, route: str | None, status: int | None, error: str | None = None) -> None:
        """It is over; called once, in the task that began it.

        Args:
            route: the template that its path met, never the path itself.
            status: of HTTP; ``None`` if there was no answer.
            error: a short name, if it ended otherwise than by its answer.
        """
        ...


class Tracing(Protocol):
    """Tells of requests, and of what models generate for them, whoever listens. None of it raises or waits."""

    def begin(self, arrival: Arrival) -> RequestTrace:
        """A request begins, in the current context: what is generated within it belongs to its trace."""
        ...

    def engines(self, launcher: EngineLauncher) -> EngineLauncher:
        """The launcher, whose engines tell of their generations from now on."""
        ...

    async def aclose(self) -> None:
        """Tell what was not told yet, but wait a second at most. Idempotent."""
        ...


class Untraced:
    """``Tracing`` to which nobody listens: requests have ids of traces, for the log."""

    def begin(self, arrival: Arrival) -> RequestTrace:
        """See ``Tracing``."""
        return _UntoldTrace(arrival.parent.trace_id if arrival.parent else new_trace_id())

    def engines(self, launcher: EngineLauncher) -> EngineLauncher:
        """See ``Tracing``."""
        return launcher

    async def aclose(self) -> None:
        """See ``Tracing``."""


def new_trace_id() -> str:
    """128 random bits, as 32 hexadecimal digits."""
    return secrets.token_hex(16)


@dataclass(frozen=True, slots=True)
class _UntoldTrace:
    trace_id: str

    def end(self, route: str | None, status: int | None, error: str | None = None) -> None:
        """See ``RequestTrace``."""

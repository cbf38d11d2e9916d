"""Why things happened: a bounded list of what became of models, for ``/events`` and the log."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from inferapi.domain.model import EngineFacts
from inferapi.domain.ports import Clock

log = logging.getLogger(__name__)

_KEPT = 1000

Fact = str | int | float | bool | None


class EventKind(StrEnum):
    """What happened to a model."""

    LOAD_STARTED = "load_started"
    LOADED = "loaded"
    LOAD_REFUSED = "load_refused"
    LOAD_FAILED = "load_failed"
    LOAD_CANCELLED = "load_cancelled"
    RESTORED = "restored"
    RESTORE_FAILED = "restore_failed"
    UNLOADED = "unloaded"
    CRASHED = "crashed"
    THRESHOLD_CHANGED = "threshold_changed"


@dataclass(frozen=True, slots=True)
class Event:
    """One entry.

    Attributes:
        event_id: counts up from 1 since the server started.
        time_s: seconds since the epoch.
        reason: for people, in a few words.
        facts: bytes, seconds and codes.
    """

    event_id: int
    time_s: float
    kind: EventKind
    model: str | None
    reason: str
    facts: Mapping[str, Fact]


class Journal:
    """The last thousand events, oldest first. Each is a line of the log, too."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ids = itertools.count(1)
        self._events: deque[Event] = deque(maxlen=_KEPT)

    def record(self, kind: EventKind, model: str | None, reason: str, **facts: Fact) -> None:
        """Write one down, now."""
        self._events.append(Event(next(self._ids), self._clock.wall_s(), kind, model, reason, facts))
        told = ", ".join(f"{name} {_told(fact)}" for name, fact in facts.items() if fact is not None)
        bad = kind in {EventKind.LOAD_FAILED, EventKind.LOAD_REFUSED, EventKind.RESTORE_FAILED, EventKind.CRASHED}
        log.log(
            logging.WARNING if bad else logging.INFO,
            "%s%s: %s%s",
            kind.replace("_", " "),
            f" {model}" if model else "",
            reason,
            f" ({told})" if told else "",
        )

    def events(self, *, model: str | None = None, after_id: int = 0, limit: int = _KEPT) -> list[Event]:
        """The newest ``limit`` of those that are asked for, oldest first."""
        found = [
            event for event in self._events if event.event_id > after_id and (model is None or event.model == model)
        ]
        return found[-limit:]


def loaded_as(facts: EngineFacts) -> str:
    """How a model was loaded, and why so: numbers, device, kernels, batching."""
    numbers = f"{facts.dtype} with {facts.quantization} weights" if facts.quantization else facts.dtype
    parts = [f"{numbers} on {facts.device}", f"attention {facts.attention} ({facts.attention_reason})"]
    if facts.kernels:
        parts.append(f"{facts.kernels} kernels{_because(facts.kernels_reason)}")
    parts.append(f"{facts.batching} batching{_because(facts.batching_reason)}")
    return ", ".join(parts)


def _because(reason: str) -> str:
    return f" ({reason})" if reason else ""


def _told(fact: Fact) -> str:
    return f"{fact:.3g}" if isinstance(fact, float) else str(fact)

"""The life of a model: its states, what may follow what, how far a load is, and the line that shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from inferapi.domain.model import EngineFacts, EngineLoad


class ModelState(StrEnum):
    """Where a model is in its life. ARCHITECTURE.md draws it; ``TRANSITIONS`` is the law."""

    UNLOADED = "unloaded"
    QUEUED = "queued"
    RESOLVING = "resolving"
    DOWNLOADING = "downloading"
    ADMITTING = "admitting"
    LOADING = "loading"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    UNLOADING = "unloading"
    RECLAIMING = "reclaiming"
    FAILED = "failed"
    CANCELLED = "cancelled"


_S = ModelState
_BROKEN_OFF = frozenset({_S.FAILED, _S.CANCELLED})

TRANSITIONS: Mapping[ModelState, frozenset[ModelState]] = {
    _S.UNLOADED: frozenset({_S.QUEUED}),
    _S.QUEUED: frozenset({_S.RESOLVING, _S.ADMITTING}) | _BROKEN_OFF,  # admitting at once: one that made room is back
    _S.RESOLVING: frozenset({_S.DOWNLOADING}) | _BROKEN_OFF,
    _S.DOWNLOADING: frozenset({_S.ADMITTING}) | _BROKEN_OFF,
    _S.ADMITTING: frozenset({_S.LOADING}) | _BROKEN_OFF,
    _S.LOADING: frozenset({_S.WARMING, _S.ADMITTING}) | _BROKEN_OFF,  # admitting again: memory ran out, others go
    _S.WARMING: frozenset({_S.READY, _S.ADMITTING}) | _BROKEN_OFF,
    _S.READY: frozenset({_S.DRAINING, _S.UNLOADED}),  # unloaded at once: its process died
    _S.DRAINING: frozenset({_S.READY, _S.UNLOADING, _S.UNLOADED}),  # ready again: nobody has to go after all
    _S.UNLOADING: frozenset({_S.RECLAIMING}),
    _S.RECLAIMING: frozenset({_S.UNLOADED}),
    _S.FAILED: frozenset({_S.QUEUED}),
    _S.CANCELLED: frozenset({_S.QUEUED}),
}
"""From each state, those that may follow."""


Report = Callable[[ModelState, int, int], None]
"""Tells how far a load is: its stage, the bytes done, and the bytes in all (0 while unknown). Never raises."""


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """How far a load is.

    Attributes:
        total_bytes: of this stage; 0 while unknown.
        elapsed_s: since the load was asked for first.
        expected_s: how long all of it is likely to take; ``None`` while nothing is known.
    """

    model: str
    stage: ModelState
    done_bytes: int
    total_bytes: int
    elapsed_s: float
    expected_s: float | None


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One line of ``/status``.

    Attributes:
        last_used_s: wall-clock time of the last release, seconds since the epoch.
        unloads_in_s: seconds to the idle unload; ``None`` while in use, or never.
        pinned: neither makes room for others nor is unloaded when idle.
        progress: of the load that is under way.
        load: how busy the engine is, as last heard.
    """

    name: str
    state: ModelState
    in_flight: int = 0
    queued: int = 0
    last_used_s: float | None = None
    unloads_in_s: float | None = None
    pinned: bool = False
    progress: LoadProgress | None = None
    facts: EngineFacts | None = field(default=None)
    load: EngineLoad | None = None

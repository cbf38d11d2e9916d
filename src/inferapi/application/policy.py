"""What the operator decided about models and sessions, and what makes two loads the same."""

from __future__ import annotations

from dataclasses import dataclass, field

from inferapi.domain.chat import SessionLimits
from inferapi.domain.model import LoadOptions, ModelRef

NEVER_S = -1
"""An inactivity threshold that never comes."""


def checked_threshold_s(threshold_s: int) -> int:
    """A threshold as it may be given: whole seconds from 1, or ``NEVER_S``.

    Raises:
        ValueError: it is neither.
    """
    if threshold_s < 1 and threshold_s != NEVER_S:
        raise ValueError("at least 1, or -1 for never")
    return threshold_s


@dataclass(frozen=True, slots=True)
class LifecyclePolicy:
    """The operator's limits.

    Attributes:
        inactivity_threshold_s: unload after so long without use; ``NEVER_S`` for never.
        drain_timeout_s: how long running requests may finish before their model goes.
        load_wait_s: how long a request waits for a model that is being loaded.
        memory_budget_bytes: a ceiling on the memory of all models; none for what the probe reports.
        load_stall_timeout_s: a load that makes no progress for so long is given up.
        max_queue_age_s: a request for a model that is not loaded waits so long for those in memory to fall idle;
            then they take no new requests until it had its turn.
        allowed_models: glob patterns of names.
        loads_on_demand: requests load the models that they name; else only operators load.
        pinned_models: glob patterns of names that neither make room for others nor are unloaded when idle.
        threads: CPU threads of a worker; none for torch's own choice.
        default_options: for loads that do not say.
        preload: the model to load at start; the server is not ready before.
    """

    max_resident_models: int = 1
    inactivity_threshold_s: int = 300
    drain_timeout_s: float = 30.0
    load_wait_s: float = 300.0
    load_stall_timeout_s: float = 120.0
    max_queue_age_s: float = 10.0
    memory_budget_bytes: int | None = None
    allowed_models: tuple[str, ...] = ("*",)
    loads_on_demand: bool = True
    pinned_models: tuple[str, ...] = ()
    max_batch: int = 32
    max_queue: int = 64
    threads: int | None = None
    default_options: LoadOptions = field(default_factory=LoadOptions)
    preload: ModelRef | None = None


@dataclass(frozen=True, slots=True)
class SessionPolicy:
    """The operator's choices about sessions.

    Attributes:
        default_system_prompt: of new sessions, until another one is set.
        wait_s: how long a turn waits for those before it in its session.
        lease_s: how long a session stays taken after the process that answered in it died.
        limits: how much of a session is kept.
    """

    default_system_prompt: str
    wait_s: float
    lease_s: float
    limits: SessionLimits

    def system_prompt(self, stored: str | None) -> str:
        """Of new sessions: the one that was set, else the default."""
        return self.default_system_prompt if stored is None else stored


@dataclass(frozen=True, slots=True)
class ModelKey:
    """Two loads with the same key are the same load."""

    ref: ModelRef
    options: LoadOptions

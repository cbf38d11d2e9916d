"""The control loop: the one place that decides what happens next, and whose heart beats for ``/health/ready``.

``decide`` looks at the fleet and acts, without an ``await`` in between: it grants leases, refuses those who waited
too long, begins loads that requests wait for, unloads what is idle, and gives one load at a time its turn on the
device. It runs after every change and whenever a time has come.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from inferapi.application.fleet import MOST_SOUGHT, Fleet
from inferapi.application.jobs import LoadJob
from inferapi.application.loading import ModelLoads
from inferapi.application.placement import Placement
from inferapi.application.policy import NEVER_S, ModelKey
from inferapi.application.residents import Resident
from inferapi.application.unloading import Departure, ModelUnloads
from inferapi.application.waiting import Waiter
from inferapi.domain.errors import InferapiError, ModelLoading, ModelNotLoaded, OperationInProgress
from inferapi.domain.states import ModelState
from inferapi.domain.telemetry import UnloadReason

log = logging.getLogger(__name__)

_BEAT_S = 5.0
_STALLED_AFTER_S = 20.0
_ABANDON_GRACE_S = 5.0
_SOUGHT = {ModelState.QUEUED, ModelState.RESOLVING, ModelState.DOWNLOADING}
_STOPPABLE = _SOUGHT | {ModelState.ADMITTING}


class ControlLoop:
    """Decides, again and again."""

    def __init__(
        self, fleet: Fleet, placement: Placement, loads: ModelLoads, unloads: ModelUnloads, threshold_s: int
    ) -> None:
        self._fleet = fleet
        self._placement = placement
        self._loads = loads
        self._unloads = unloads
        self._beat_s = fleet.clock.monotonic_s()
        self.threshold_s = threshold_s

    @property
    def is_stalled(self) -> bool:
        """It has not come to a decision for so long that something must be wrong with it."""
        return self._fleet.clock.monotonic_s() - self._beat_s > _STALLED_AFTER_S

    async def run(self) -> None:
        """Decide until cancelled."""
        while True:
            next_s: float | None = None
            try:
                next_s = self.decide()
                self._beat_s = self._fleet.clock.monotonic_s()
            except Exception:  # the next decision may work; if none does, the heart stops and readiness shows it
                log.exception("the control loop stumbled")
            now_s = self._fleet.clock.monotonic_s()
            await self._fleet.bell.changed(_BEAT_S if next_s is None else min(max(next_s - now_s, 0.0), _BEAT_S))

    def decide(self) -> float | None:
        """Do all that is due; returns when, on the monotonic clock, something will be due next."""
        times = [*self._serve_waiters(), *self._abandon_loads(), *self._give_turn(), *self._unload_idle()]
        return min(times, default=None)

    # Requests that wait

    def _serve_waiters(self) -> Iterator[float]:
        now_s = self._fleet.clock.monotonic_s()
        for waiter in self._fleet.waiting:
            if not waiter.granted.done():  # else a load that was begun just now served it
                self._serve(waiter, now_s)
            if not waiter.granted.done():
                yield waiter.deadline_s

    def _serve(self, waiter: Waiter, now_s: float) -> None:
        fleet = self._fleet
        key = waiter.key or fleet.current
        resident = fleet.resident(key)
        in_turn = fleet.jobs.in_turn
        if resident is not None and resident.is_ready:
            waiter.grant(resident)
        elif key is None and not any(job.explicit for job in fleet.jobs):
            waiter.refuse(ModelNotLoaded())
        elif now_s >= waiter.deadline_s:
            job = fleet.jobs.find(key) or in_turn or next(iter(fleet.jobs), None)
            waiter.refuse(ModelLoading(model=str(key.ref if key else job.key.ref if job else "")))
        elif key is None or resident is not None or fleet.jobs.find(key) is not None:
            pass  # it is on its way, here or out
        elif in_turn is not None and in_turn.explicit and waiter.key is None:
            pass  # what is loaded just now will be current; if it fails, the old model is back
        elif in_turn is not None and in_turn.replaces == key:
            waiter.refuse(OperationInProgress(operation=in_turn.name))
        elif not any(other.key == key for other in fleet.residents):  # a dead or dying one goes first
            error = self._why_not_load(key)
            if error is not None:
                waiter.refuse(error)
            elif key == fleet.current or self._sought() < MOST_SOUGHT:
                self._loads.begin(key, explicit=False, reason="a request needs it")

    def _why_not_load(self, key: ModelKey) -> InferapiError | None:
        """Why a request may not have that model loaded, if so. The one that an operator made current it always may."""
        if key != self._fleet.current and not self._fleet.policy.loads_on_demand:
            return ModelNotLoaded()
        return self._fleet.failures.standing(key)

    def _sought(self) -> int:
        return sum(not job.explicit and job.state in _SOUGHT for job in self._fleet.jobs)

    # Loads under way

    def _abandon_loads(self) -> Iterator[float]:
        """Stop a load that requests wanted and nobody waits for any more, as long as it has cost little."""
        now_s = self._fleet.clock.monotonic_s()
        for job in self._fleet.jobs:
            if self._fleet.waiters_for(job.key) or job.explicit or job.state not in _STOPPABLE:
                job.wanted_s = now_s
            elif now_s >= job.wanted_s + _ABANDON_GRACE_S:
                job.cancel()
            else:
                yield job.wanted_s + _ABANDON_GRACE_S

    def _give_turn(self) -> Iterator[float]:
        """One load at a time uses the device: operators' first, then the one whose requests wait longest.

        Requests for one model so come in groups: all of them are served before another model has its turn.
        """
        jobs = self._fleet.jobs
        if jobs.in_turn is not None or self._fleet.is_closed:
            return
        admitting = [
            job
            for job in jobs
            if job.state is ModelState.ADMITTING
            and not job.is_over
            and (job.explicit or self._fleet.waiters_for(job.key))  # nobody goes for a load that nobody waits for
        ]
        for job in sorted(admitting, key=lambda job: (not job.explicit, self._waiting_since_s(job))):
            ready_s, victims = self._room_for(job)
            if victims is not None:
                job.displace(victims)
                job.victims = victims
                job.patience_s = self._patience_s(job)
                jobs.in_turn = job
                job.turn.set()
                return
            if ready_s is not None:
                yield ready_s

    def _room_for(self, job: LoadJob) -> tuple[float | None, list[Resident] | None]:
        """Who makes room now; or when to look again.

        A request takes no model away from others before that one has served for as long as its load took, nor
        while it is in use: but once the request has waited too long, its turn has come.
        """
        fleet, profile = self._fleet, job.profile
        assert profile is not None  # noqa: S101 - it is known before a load is admitted
        if fleet.already(job) is not None:
            return None, []  # the load finds it in its turn
        if any(resident.key == job.key for resident in fleet.residents):
            return None, None  # never two of one key: the one on its way out goes first
        now_s = fleet.clock.monotonic_s()
        overdue_s = self._waiting_since_s(job) + fleet.policy.max_queue_age_s
        victims = self._placement.victims(job.key, profile, job.replaces)
        if job.explicit or now_s >= overdue_s:
            if victims is None:
                victims = self._placement.victims(job.key, profile, job.replaces, busy_too=True)
            # Where nobody can make room, the load says so in its turn.
            return None, self._placement.going(job.key, job.replaces) if victims is None else victims
        if victims is None:
            return overdue_s, None
        earned_s = max((victim.ready_s + victim.engine.facts.load_s for victim in victims), default=now_s)
        return (None, victims) if now_s >= earned_s else (min(earned_s, overdue_s), None)

    def _patience_s(self, job: LoadJob) -> float:
        """For an operator the drain deadline; for requests as long as the most patient of them waits."""
        if job.explicit:
            return self._fleet.policy.drain_timeout_s
        deadlines = [waiter.deadline_s for waiter in self._fleet.waiters_for(job.key)]
        return max(max(deadlines, default=0.0) - self._fleet.clock.monotonic_s(), 0.0)

    def _waiting_since_s(self, job: LoadJob) -> float:
        return min((waiter.since_s for waiter in self._fleet.waiters_for(job.key)), default=job.wanted_s)

    # Models that nobody uses

    def _unload_idle(self) -> Iterator[float]:
        """Unload what nobody used for the threshold, counted from the end of the last request."""
        if self.threshold_s == NEVER_S:
            return
        now_s = self._fleet.clock.monotonic_s()
        for resident in self._fleet.residents:
            if resident.is_free and not resident.pinned:
                due_s = resident.last_used_s + self.threshold_s
                if now_s >= due_s:
                    reason = f"not used for {self.threshold_s} s"
                    self._unloads.begin(resident, Departure(UnloadReason.IDLE, reason, 0.0, cuts=False))
                else:
                    yield due_s

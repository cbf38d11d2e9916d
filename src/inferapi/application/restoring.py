"""Who made room for a load that failed serves again: without asking anew for what is known of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from inferapi.application.fleet import Fleet
from inferapi.application.jobs import LoadJob
from inferapi.application.journal import EventKind
from inferapi.application.launching import Launching
from inferapi.application.residents import Resident
from inferapi.domain.states import ModelState
from inferapi.domain.telemetry import LoadOutcome

log = logging.getLogger(__name__)


class Restoration:
    """Loads models back, within the turn of the load that failed."""

    def __init__(self, fleet: Fleet, launching: Launching) -> None:
        self._fleet = fleet
        self._launching = launching

    async def restore(self, displaced: Sequence[Resident], error: BaseException) -> None:
        """Bring back each of them, and note on the error how that went."""
        for victim in displaced:
            if victim.ending is not None:
                await asyncio.shield(victim.ending)
            known = self._fleet.jobs.find(victim.key) or self._fleet.residents.find(victim.key)
            if known is victim and victim.is_ready:
                error.add_note(f"Model {victim.key.ref} is still serving.")
            if known is not None:
                continue
            task = self._begin(victim).task
            await asyncio.wait({task})
            problem = None if task.cancelled() else task.exception()
            if problem is not None:
                log.error("%s could not be brought back", victim.key.ref, exc_info=problem)
            if task.cancelled() or problem is not None:
                error.add_note(f"Model {victim.key.ref} could not be brought back; the next request tries again.")
            else:
                error.add_note(f"Model {victim.key.ref} is serving again.")

    def _begin(self, victim: Resident) -> LoadJob:
        job = LoadJob(victim.key, self._fleet.clock, explicit=False, load_s=victim.engine.facts.load_s)
        job.turn.set()
        self._fleet.jobs.add(job)
        job.task = self._fleet.spawn(self._run(job, victim), f"restoring {victim.key.ref}")
        job.task.add_done_callback(lambda _: self._fleet.over(job))
        return job

    async def _run(self, job: LoadJob, victim: Resident) -> Resident:
        fleet, model = self._fleet, str(job.key.ref)
        try:
            job.enter(ModelState.ADMITTING)
            job.enter(ModelState.LOADING)
            engine = await self._launching.engine(job, victim.spec)
            resident = fleet.arrive(job, victim.spec, engine, commit=victim.commit)
        except Exception as error:
            job.ends(ModelState.FAILED)
            fleet.journal.record(EventKind.RESTORE_FAILED, model, type(error).__name__)
            fleet.telemetry.load_ended(model, LoadOutcome.RESTORE_FAILED, job.elapsed_s)
            raise
        finally:
            fleet.over(job)
        for name in victim.names:
            fleet.residents.name(resident, name)
        fleet.journal.record(EventKind.RESTORED, model, "what it made room for failed to load")
        fleet.telemetry.load_ended(model, LoadOutcome.RESTORED, job.elapsed_s)
        return resident

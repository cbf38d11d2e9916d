"""How a model comes into memory: resolve, download, take a turn on the device, make room, load, and undo.

The steps of one ``LoadJob``. ``control.py`` decides whose turn it is; what happens in a turn happens here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from weakref import WeakValueDictionary

from inferapi.application.admission import Admission, ran_out_of_memory
from inferapi.application.fleet import Fleet
from inferapi.application.jobs import LoadJob
from inferapi.application.journal import EventKind, loaded_as
from inferapi.application.launching import Launching
from inferapi.application.placement import Placement
from inferapi.application.policy import ModelKey
from inferapi.application.residents import Resident
from inferapi.application.restoring import Restoration
from inferapi.application.unloading import Departure, ModelUnloads
from inferapi.domain.errors import (
    InferapiError,
    InsufficientMemory,
    LoadCancelled,
    ModelsInUse,
    ModelTooLarge,
    OutOfMemory,
    QuantizationRefused,
    ShuttingDown,
    UnexpectedError,
)
from inferapi.domain.model import EngineSpec, ModelProfile
from inferapi.domain.ports import EngineLauncher, ModelRepository, TextEngine
from inferapi.domain.states import ModelState
from inferapi.domain.telemetry import LoadOutcome, UnloadReason

log = logging.getLogger(__name__)

_COSTLY = {ModelState.LOADING, ModelState.WARMING}
_REFUSALS = (ModelTooLarge, InsufficientMemory, QuantizationRefused)


class ModelLoads:
    """Runs load jobs."""

    def __init__(
        self,
        fleet: Fleet,
        models: ModelRepository,
        launcher: EngineLauncher,
        admission: Admission,
        placement: Placement,
        unloads: ModelUnloads,
    ) -> None:
        self._fleet = fleet
        self._models = models
        self._launching = Launching(fleet, launcher)
        self._admission = admission
        self._placement = placement
        self._unloads = unloads
        # Two loads of one commit (of two dtypes, say) download it once: the second finds it there.
        self._fetching: WeakValueDictionary[tuple[str, str | None], asyncio.Lock] = WeakValueDictionary()
        self._restoration = Restoration(fleet, self._launching)

    def begin(self, key: ModelKey, *, explicit: bool, reason: str) -> LoadJob:
        """Start a load that is not under way."""
        job = LoadJob(key, self._fleet.clock, explicit=explicit, load_s=self._admission.expected_load_s(key))
        self._fleet.jobs.add(job)
        self._fleet.journal.record(EventKind.LOAD_STARTED, str(key.ref), reason)
        job.task = self._fleet.spawn(self._run(job), f"loading {key.ref}")
        job.task.add_done_callback(lambda _: self._fleet.over(job))
        return job

    async def _run(self, job: LoadJob) -> Resident:
        fleet, model = self._fleet, str(job.key.ref)
        try:
            resident = await self._load(job)
        except asyncio.CancelledError as cancelled:
            error: InferapiError = ShuttingDown() if fleet.is_closed else LoadCancelled(model=model)
            for note in getattr(cancelled, "__notes__", ()):
                error.add_note(note)
            self._break_off(job, ModelState.CANCELLED, error)
            stage = job.ended_in or job.state
            fleet.journal.record(EventKind.LOAD_CANCELLED, model, stage.value, elapsed_s=round(job.elapsed_s, 3))
            fleet.telemetry.load_ended(model, LoadOutcome.CANCELLED, job.elapsed_s)
            raise error from None
        except InferapiError as error:
            kind = EventKind.LOAD_REFUSED if isinstance(error, _REFUSALS) else EventKind.LOAD_FAILED
            fleet.journal.record(kind, model, error.message, code=error.code, elapsed_s=round(job.elapsed_s, 3))
            refused = kind is EventKind.LOAD_REFUSED
            fleet.telemetry.load_ended(model, LoadOutcome.REFUSED if refused else LoadOutcome.FAILED, job.elapsed_s)
            self._break_off(job, ModelState.FAILED, error)
            if job.ended_in in _COSTLY or not isinstance(error, ModelsInUse | InsufficientMemory):
                fleet.failures.note(job.key, error)  # that there is no place is nothing against the model
            raise
        except Exception as error:
            log.exception("loading %s broke", model)
            told = UnexpectedError()
            fleet.journal.record(
                EventKind.LOAD_FAILED,
                model,
                type(error).__name__,
                code=told.code,
                elapsed_s=round(job.elapsed_s, 3),
            )
            fleet.telemetry.load_ended(model, LoadOutcome.FAILED, job.elapsed_s)
            fleet.failures.note(job.key, told)
            self._break_off(job, ModelState.FAILED, told)
            raise
        finally:
            fleet.over(job)
        fleet.failures.forget(job.key)
        return resident

    def _break_off(self, job: LoadJob, state: ModelState, error: InferapiError) -> None:
        """Tell everybody who waits for this model, in the same step in which the load ends.

        Not of a load that was given up: those who waited then were told then, and who came later gets another.
        """
        job.ends(state)
        if job.explicit:
            self._fleet.unpin(job.key)  # what was to be pinned did not come
        if state is ModelState.FAILED:
            for waiter in self._fleet.waiters_for(job.key):
                if waiter.key or self._fleet.current:  # else no model was ever loaded, and that they are told
                    waiter.refuse(error.again())

    async def _load(self, job: LoadJob) -> Resident:
        """All of it.

        Raises:
            ModelUnavailable: it cannot be had, does not fit, or could not be loaded; a note says what serves.
        """
        stall_timeout_s = self._fleet.policy.load_stall_timeout_s
        try:
            job.enter(ModelState.RESOLVING)
            profile = await job.unless_stalled(self._models.profile(job.key.ref), stall_timeout_s)
            twin = self._fleet.twin(job.key, profile.commit)
            if twin is not None:
                return self._same_as(twin, job)
            self._placement.require_possible(job, profile)
            job.enter(ModelState.DOWNLOADING)
            async with self._fetching.setdefault((job.key.ref.name, profile.commit), asyncio.Lock()):
                job.path = await job.unless_stalled(self._models.fetch(profile, job.tell), stall_timeout_s)
        except (InferapiError, asyncio.CancelledError) as error:
            for resident in self._fleet.residents:
                if resident.is_ready:
                    error.add_note(f"Model {resident.key.ref} is still serving.")
            raise
        job.profile = profile
        job.enter(ModelState.ADMITTING)
        self._fleet.bell.ring()
        try:
            await job.turn.wait()
        except asyncio.CancelledError:
            self._unloads.reprieve(job.victims)  # it was given its turn in the same moment
            raise
        return await self._load_in_turn(job, profile, job.path)

    async def _load_in_turn(self, job: LoadJob, profile: ModelProfile, path: str) -> Resident:
        """Make room, then load; whoever went for it is back if it fails."""
        there = self._fleet.already(job)
        if there is not None:
            return self._same_as(there, job)
        try:
            await self._make_room(job, profile)
            spec, engine = await self._launch(job, profile, path)
        except asyncio.CancelledError as cancelled:
            job.ends(ModelState.CANCELLED)
            if not self._fleet.is_closed:
                await self._restoration.restore(job.displaced, cancelled)
            raise
        except Exception as error:  # whatever it was, who served before must serve again
            job.ends(ModelState.FAILED)
            await self._restoration.restore(job.displaced, error)
            raise
        return self._ready(job, spec, engine)

    async def _make_room(self, job: LoadJob, profile: ModelProfile) -> None:
        """Remove those who must go; then look again, as memory may tell otherwise than the plan."""
        victims = job.victims
        while True:
            await self._remove(victims, job)
            more = self._placement.victims(job.key, profile, job.replaces)
            if more is None:
                self._placement.refuse(job, profile)
            if not more:
                break
            victims = more
            job.displace(victims)
        job.report = self._placement.report(job.key, profile, [])

    async def _remove(self, victims: Sequence[Resident], job: LoadJob) -> None:
        """Those that are replaced are cut off at the drain deadline; those that only make room are waited for."""
        timeout_s = self._fleet.policy.drain_timeout_s
        replaced = [victim for victim in victims if victim.key == job.replaces or victim.key.ref == job.key.ref]
        evicted = [victim for victim in victims if victim not in replaced]
        try:
            reason = f"made room for {job.key.ref}"
            await self._unloads.remove(evicted, Departure(UnloadReason.EVICTED, reason, job.patience_s, cuts=False))
        except BaseException:
            self._unloads.reprieve(replaced)
            raise
        reason = f"replaced by {job.key.ref}"
        await self._unloads.remove(replaced, Departure(UnloadReason.REPLACED, reason, timeout_s, cuts=job.explicit))

    async def _launch(self, job: LoadJob, profile: ModelProfile, path: str) -> tuple[EngineSpec, TextEngine]:
        """Load it; if memory runs out nevertheless, unload all that is idle and try once more."""
        for is_last in (False, True):
            assert job.report is not None  # noqa: S101 - _make_room made it
            job.enter(ModelState.LOADING)
            spec = self._admission.spec(job.key, path, job.report)
            try:
                return spec, await self._launching.engine(job, spec)
            except OutOfMemory as error:
                idle = [r for r in self._fleet.residents if r.is_free and not r.pinned]
                if is_last or not idle:
                    raise ran_out_of_memory(job.report) from error
                job.enter(ModelState.ADMITTING)
                job.displace(idle)
                await self._remove(idle, job)
                job.report = self._placement.report(job.key, profile, [])
        raise AssertionError  # the second try either returned or raised

    def _ready(self, job: LoadJob, spec: EngineSpec, engine: TextEngine) -> Resident:
        facts, report = engine.facts, job.report
        assert report is not None  # noqa: S101 - _make_room made it
        assert job.profile is not None  # noqa: S101 - without it there is no turn
        resident = self._fleet.arrive(job, spec, engine, commit=job.profile.commit)
        self._admission.learn(job.key, job.profile, report, facts)
        self._fleet.journal.record(
            EventKind.LOADED,
            facts.model,
            loaded_as(facts),
            duration_s=round(job.elapsed_s, 3),
            load_s=round(facts.load_s, 3),
            weights_bytes=facts.weights_bytes,
            estimated_bytes=report.loaded_bytes,
            actual_bytes=facts.memory_bytes,
            peak_bytes=facts.peak_memory_bytes,
            estimate_error_ratio=round(facts.memory_bytes / report.loaded_bytes, 4) if report.loaded_bytes else None,
            promised_bytes=report.needed_bytes,
        )
        self._fleet.telemetry.load_ended(facts.model, LoadOutcome.LOADED, job.elapsed_s)
        return resident

    def _same_as(self, twin: Resident, job: LoadJob) -> Resident:
        """The model is in memory already: what was asked of the job holds for it."""
        self._fleet.residents.name(twin, job.key.ref)
        self._fleet.pin(twin.key, pinned=self._fleet.unpin(job.key) if job.key != twin.key else None)
        if job.explicit:
            self._fleet.current = twin.key
        self._fleet.grant(twin)
        self._fleet.journal.record(EventKind.LOADED, str(job.key.ref), f"in memory already, as {twin.key.ref}")
        return twin

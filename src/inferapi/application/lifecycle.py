"""Which model is loaded: the use cases of operators, and leases for requests.

The rooms behind it: ``fleet`` knows, ``control`` decides, ``loading`` and ``unloading`` act. ARCHITECTURE.md draws
the states.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from inferapi.application.admission import Admission
from inferapi.application.changes import Changes
from inferapi.application.control import ControlLoop
from inferapi.application.fleet import Fleet
from inferapi.application.jobs import Listener
from inferapi.application.journal import Event, EventKind
from inferapi.application.loading import ModelLoads
from inferapi.application.placement import FitAnswer, Placement
from inferapi.application.policy import LifecyclePolicy
from inferapi.application.residents import Resident
from inferapi.application.unloading import ModelUnloads
from inferapi.application.waiting import Waiter
from inferapi.domain.errors import ModelNotLoaded, ShuttingDown
from inferapi.domain.model import Device, EngineFacts, LoadOptions, ModelRef
from inferapi.domain.ports import Clock, EngineLauncher, GpuProbe, ModelRepository, TextEngine
from inferapi.domain.states import ModelStatus
from inferapi.domain.telemetry import SILENT, Telemetry, UnloadReason

log = logging.getLogger(__name__)

_LAST_S = 0.5  # beyond the drain timeout, for engines to go


class ModelLifecycle:
    """Loads, changes and unloads models, and leases them to requests."""

    def __init__(
        self,
        models: ModelRepository,
        launcher: EngineLauncher,
        probe: GpuProbe,
        clock: Clock,
        policy: LifecyclePolicy,
        telemetry: Telemetry = SILENT,
    ) -> None:
        self._models = models
        self._launcher = launcher
        self._policy = policy
        self.telemetry = telemetry
        self._fleet = fleet = Fleet(clock, policy, telemetry)
        self._admission = Admission(probe, policy)
        self._placement = Placement(fleet, self._admission)
        self._unloads = ModelUnloads(fleet, probe)
        self._loads = ModelLoads(fleet, models, launcher, self._admission, self._placement, self._unloads)
        self._changes = Changes(fleet, self._loads, self._unloads)
        self._control = ControlLoop(fleet, self._placement, self._loads, self._unloads, policy.inactivity_threshold_s)
        self._controlling: asyncio.Task[None] | None = None
        self._preload = self._admission.key(policy.preload, None) if policy.preload else None
        self._unready: str | None = "loading" if policy.preload else None

    async def start(self) -> None:
        """Begin to decide, let the launcher prepare, and begin to load the first model."""
        self._controlling = asyncio.create_task(self._control.run(), name="control loop")
        await self._launcher.start()
        if self._preload is not None:
            job = self._loads.begin(self._preload, explicit=True, reason="named at start")
            job.task.add_done_callback(self._first_ended)

    # What operators may ask

    async def load(
        self,
        ref: ModelRef,
        options: LoadOptions | None = None,
        *,
        pinned: bool | None = None,
        listener: Listener | None = None,
    ) -> EngineFacts:
        """Make a model resident and current; at once if it is. Survives the caller.

        Args:
            ref: the model.
            options: how to load it; ``None`` leaves it to the server.
            pinned: keep it until it is asked to go; ``None`` leaves it to the server.
            listener: hears of every step of the load, also if somebody else began it.

        Raises:
            ModelUnavailable: it cannot be had or does not fit; what served before still does.
            QuantizationRefused: this machine cannot quantize, or the model is stored quantized.
            OperationInProgress: another change is under way.
            LoadCancelled: ``unload`` was asked for meanwhile.
        """
        key = self._admission.key(ref, options)
        await self._changes.cleaned_up(key)
        self._changes.require_no_other(key, replaces=None)
        resident = self._changes.same(key)
        if resident is not None and resident.is_ready:
            return self._changes.make_current(resident, pinned=pinned)
        return await self._changes.joined(self._changes.explicit(key, replaces=None, pinned=pinned), listener)

    async def change(
        self,
        ref: ModelRef,
        options: LoadOptions | None = None,
        *,
        pinned: bool | None = None,
        listener: Listener | None = None,
    ) -> EngineFacts:
        """Replace the current model. On failure it is back, and the error says so. Survives the caller.

        Raises:
            ModelNotLoaded: there is nothing to change.
            others: as ``load``.
        """
        key = self._admission.key(ref, options)
        await self._changes.cleaned_up(key)
        replaced = self._fleet.current
        if replaced is None and self._fleet.jobs.find(key) is None:
            raise ModelNotLoaded
        self._changes.require_no_other(key, replaces=replaced)
        resident = self._changes.same(key)
        if resident is not None and resident.is_ready:
            facts = self._changes.make_current(resident, pinned=pinned)
        else:
            facts = await self._changes.joined(self._changes.explicit(key, replaces=replaced, pinned=pinned), listener)
        left = [r for r in self._fleet.residents if r.key == replaced and r.key != self._fleet.current]
        await self._changes.take_away(left, UnloadReason.REPLACED, f"replaced by {ref}")
        return facts

    async def unload(self, ref: ModelRef | None = None) -> tuple[ModelRef, bool]:
        """Take a model, or the current one, out of memory, or cancel its load; requests do not bring it back.

        Returns the model, and whether it was a load that was cancelled.

        Raises:
            ModelNotLoaded: it is neither loaded nor being loaded.
            OperationInProgress: it makes room for another one just now.
        """
        loading = await self._changes.cancelled(ref)
        if loading is not None:
            return loading, True
        return await self._changes.removed(ref), False

    async def fit(self, ref: ModelRef, options: LoadOptions | None = None, *, replacing: bool = False) -> FitAnswer:
        """What loading, or replacing the current model, would need and whom it would displace, without loading.

        Raises:
            ModelNotLoaded: there is nothing to replace.
            others: as ``ModelRepository.profile``.
        """
        key = self._admission.key(ref, options)
        if replacing and self._fleet.current is None:
            raise ModelNotLoaded
        profile = await self._models.profile(ref)
        return self._placement.answer(key, profile, self._fleet.current if replacing else None)

    def set_inactivity_threshold(self, threshold_s: int) -> None:
        """Unload after so long without use, from now on and for idle models at once; ``NEVER_S`` for never."""
        self._control.threshold_s = threshold_s
        self._fleet.journal.record(EventKind.THRESHOLD_CHANGED, None, "asked for", threshold_s=threshold_s)
        self._fleet.bell.ring()

    def _first_ended(self, task: asyncio.Task[Resident]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._unready = "loading the model named at start failed"

    # What requests ask

    @asynccontextmanager
    async def lease(self, ref: ModelRef | None = None) -> AsyncIterator[TextEngine]:
        """The engine of the named model, or of the current one, kept for as long as the context lasts.

        It is loaded first if need be; a model that is loaded already is taken as it was loaded.

        Raises:
            ModelNotLoaded: no model was ever loaded, or it was unloaded on purpose, or requests may not load this one.
            ModelLoading: it was not ready in time.
            QueueFull: too many wait for it already.
            ModelUnavailable: it may not be loaded, or loading it failed.
        """
        try:
            resident = await self._acquire(ref)
        except asyncio.CancelledError:
            self.telemetry.request_aborted(str(ref or self.current or ""))
            raise
        try:
            yield resident.engine
        finally:
            self._fleet.residents.release(resident)

    async def _acquire(self, ref: ModelRef | None) -> Resident:
        fleet = self._fleet
        if fleet.is_closed:
            raise ShuttingDown
        key = None if ref is None else self._admission.key(ref, None)
        if ref is not None:
            key = fleet.known(ref) or key
        resident = fleet.resident(key or fleet.current)
        if resident is not None and resident.is_ready:
            resident.leases += 1
            return resident
        fleet.require_room_to_wait(key)
        now_s = fleet.clock.monotonic_s()
        waiter = Waiter(key, now_s, now_s + self._policy.load_wait_s)
        fleet.waiting.enter(waiter)
        fleet.bell.ring()
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled() and not waiter.granted.exception():
                fleet.residents.release(waiter.granted.result())  # granted in the moment in which it left
            raise

    # What anybody may look at: reading gates nothing

    @property
    def inactivity_threshold_s(self) -> int:
        """What was set last."""
        return self._control.threshold_s

    @property
    def current(self) -> ModelRef | None:
        """The model that requests go to, loaded or not."""
        return self._fleet.current.ref if self._fleet.current else None

    @property
    def unready_reason(self) -> str | None:
        """Why requests cannot be served now; ``None`` when they can.

        No model need be loaded for that; but if one was named at start, then some model must have been.
        """
        if self._fleet.is_closed:
            return "draining"
        if self._controlling is not None and self._control.is_stalled:
            return "the control loop does not decide"
        return None if self._fleet.was_ready else self._unready

    @property
    def default_options(self) -> LoadOptions:
        """How models are loaded where nobody says otherwise."""
        return self._policy.default_options

    def device(self) -> Device:
        """Where models live, and how full it is."""
        return self._admission.device()

    def events(self, *, model: str | None = None, after_id: int = 0, limit: int) -> list[Event]:
        """What became of models, and why; the newest ``limit``, oldest first."""
        return self._fleet.journal.events(model=model, after_id=after_id, limit=limit)

    def status(self) -> list[ModelStatus]:
        """One line a model: in memory, being loaded, or waiting for a request."""
        return self._fleet.status(self.inactivity_threshold_s)

    # The end

    async def drain(self) -> None:
        """Take no more requests, let those that run finish until the drain deadline, end every engine."""
        fleet = self._fleet
        fleet.is_closed = True
        if self._controlling is not None:
            self._controlling.cancel()
            await asyncio.gather(self._controlling, return_exceptions=True)
        fleet.waiting.refuse_all(ShuttingDown)
        for job in fleet.jobs:
            job.task.cancel()
        leaving = self._changes.take_away(list(fleet.residents), UnloadReason.SHUTDOWN, "the server ends")
        try:
            async with asyncio.timeout(self._policy.drain_timeout_s + _LAST_S):
                await asyncio.gather(leaving, *(job.task for job in fleet.jobs), return_exceptions=True)
                await fleet.settled()
        except TimeoutError:  # the deadline is hard, whatever hangs
            log.warning("not everything ended within the drain timeout: it is ended now")
            await self._launcher.aclose()
            await fleet.settled()

    async def abort(self) -> None:
        """End every engine at once; the requests that use them are told so."""
        self._fleet.is_closed = True
        await self._launcher.aclose()

    async def aclose(self) -> None:
        """Drain, if that was not done, and end what is left."""
        await self.drain()
        await self._launcher.aclose()

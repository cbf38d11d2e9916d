"""Which model is loaded: the one place that knows, and the one that changes it.

Every change is an operation, one at a time. Whatever happens between two ``await``s here is one transition: the
state that a decision rests on is read in the same breath. Requests hold leases; a model goes only when nobody
holds one, or when the drain deadline has passed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from inferapi.application.admission import Admission
from inferapi.application.operations import Operation, Operations
from inferapi.application.policy import NEVER_S, LifecyclePolicy, ModelKey
from inferapi.application.residents import Resident, Residents
from inferapi.application.swap import ModelSwap
from inferapi.domain.errors import InferapiError, ModelNotLoaded, ShuttingDown
from inferapi.domain.model import (
    Device,
    EngineFacts,
    FitReport,
    LoadOptions,
    ModelRef,
    ModelState,
    ModelStatus,
)
from inferapi.domain.ports import Clock, EngineLauncher, GpuProbe, ModelRepository, TextEngine

log = logging.getLogger(__name__)


class ModelLifecycle:
    """Loads, changes and unloads models, and leases the current one to requests."""

    def __init__(
        self,
        models: ModelRepository,
        launcher: EngineLauncher,
        probe: GpuProbe,
        clock: Clock,
        policy: LifecyclePolicy,
    ) -> None:
        self._launcher = launcher
        self._admission = Admission(probe, policy)
        self._clock = clock
        self._policy = policy
        self._threshold_s = policy.inactivity_threshold_s
        self._residents = Residents(clock)
        self._swap = ModelSwap(models, launcher, self._admission, self._residents, policy)
        self._operations = Operations(clock, self._residents.ring)
        self._current: ModelKey | None = None  # also while it is unloaded: the next request loads it again
        self._reaper: asyncio.Task[None] | None = None
        self._preload = self._admission.key(policy.preload, None) if policy.preload else None
        self._unready: str | None = "loading" if policy.preload else None

    # What the outside may ask

    async def start(self) -> None:
        """Begin to watch for idle models, let the launcher prepare, and begin to load the first model."""
        self._reaper = asyncio.create_task(self._reap(), name="idle models")
        await self._launcher.start()
        if self._preload is not None:
            key = self._preload
            self._operations.begin(f"loading {key.ref}", key, partial(self._load_first, key))

    async def load(self, ref: ModelRef, options: LoadOptions | None = None) -> EngineFacts:
        """Make a model resident and current; at once if it is. Survives the caller.

        Raises:
            ModelUnavailable: it cannot be had or does not fit; what served before still does.
            OperationInProgress: another change is under way.
        """
        if self._operations.is_closed:
            raise ShuttingDown
        key = self._admission.key(ref, options)
        resident = self._residents.find(key)
        if resident is not None and resident.is_ready and self._operations.current is None:
            self._current = key
            self._residents.touch(resident)
            return resident.engine.facts
        return await self._change(f"loading {ref}", key, replaced=None)

    async def change(self, ref: ModelRef, options: LoadOptions | None = None) -> EngineFacts:
        """Replace the current model. On failure it is back, and the error says so. Survives the caller.

        Raises:
            ModelNotLoaded: there is nothing to change.
            ModelUnavailable, OperationInProgress: as ``load``.
        """
        key = self._admission.key(ref, options)
        if self._current is None:
            raise ModelNotLoaded
        return await self._change(f"changing to {ref}", key, replaced=self._current)

    async def unload(self, ref: ModelRef | None = None) -> ModelRef:
        """Take a model, or the current one, out of memory; requests do not bring it back.

        Raises:
            ModelNotLoaded: it is not loaded.
            OperationInProgress: another change is under way.
        """
        known = [resident.key for resident in self._residents] + ([self._current] if self._current else [])
        key = self._current if ref is None else next((key for key in known if key.ref == ref), None)
        if key is None:
            raise ModelNotLoaded
        await self._operations.join(f"unloading {key.ref}", key, partial(self._unload, key))
        return key.ref

    async def fit(self, ref: ModelRef, options: LoadOptions | None = None) -> FitReport:
        """What loading would need, without loading."""
        return await self._swap.fit(self._admission.key(ref, options))

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[TextEngine]:
        """The current model's engine, kept for as long as the context lasts; loaded first if need be.

        Raises:
            ModelNotLoaded: no model was ever loaded, or it was unloaded on purpose.
            ModelLoading: it was not ready in time.
            ModelUnavailable: loading it again failed.
        """
        resident = await self._acquire()
        try:
            yield resident.engine
        finally:
            resident.leases -= 1
            self._residents.touch(resident)

    def set_inactivity_threshold(self, threshold_s: int) -> None:
        """Unload after so long without use, from now on and for idle models at once; ``NEVER_S`` for never."""
        self._threshold_s = threshold_s
        self._residents.ring()

    @property
    def inactivity_threshold_s(self) -> int:
        """What was set last."""
        return self._threshold_s

    @property
    def current(self) -> ModelRef | None:
        """The model that requests go to, loaded or not."""
        return self._current.ref if self._current else None

    @property
    def unready_reason(self) -> str | None:
        """Why requests cannot be served now; ``None`` when they can.

        No model need be loaded for that; but if one was named at start, then some model must have been.
        """
        if self._operations.is_closed:
            return "draining"
        return self._unready

    def device(self) -> Device:
        """Where models live, and how full it is."""
        return self._admission.device()

    def status(self) -> list[ModelStatus]:
        """One line a model: resident, being loaded, or waiting for a request."""
        now_s = self._clock.monotonic_s()
        lines = [resident.status(now_s, self._threshold_s) for resident in self._residents]
        named = {resident.key for resident in self._residents}
        operation = self._operations.current
        if operation is not None and operation.key not in named:
            lines.append(ModelStatus(str(operation.key.ref), operation.stage))
            named.add(operation.key)
        if self._current is not None and self._current not in named:
            lines.append(ModelStatus(str(self._current.ref), ModelState.UNLOADED))
        return lines

    async def drain(self) -> None:
        """Take no more requests, let those that run finish until the drain deadline, end every engine."""
        self._operations.close()
        if self._reaper is not None:
            self._reaper.cancel()
            await asyncio.gather(self._reaper, return_exceptions=True)
        await self._operations.aclose()
        await self._swap.drain()

    async def aclose(self) -> None:
        """Drain, if that was not done, and end what is left."""
        await self.drain()
        await self._launcher.aclose()

    # Operations

    async def _change(self, name: str, key: ModelKey, replaced: ModelKey | None) -> EngineFacts:
        facts: EngineFacts = await self._operations.join(name, key, partial(self._load, key, replaced=replaced))
        return facts

    async def _load(self, key: ModelKey, operation: Operation, *, replaced: ModelKey | None) -> EngineFacts:
        resident = self._residents.find(key)
        if resident is None:
            resident = await self._swap.load(key, operation, replaced)
        elif replaced not in {None, key}:  # it is one of several that are resident
            await self._swap.remove([other for other in self._residents if other.key == replaced])
        self._current = key
        self._unready = None
        return resident.engine.facts

    async def _load_first(self, key: ModelKey, operation: Operation) -> EngineFacts:
        try:
            return await self._load(key, operation, replaced=None)
        except InferapiError:
            self._unready = "loading the model named at start failed"
            raise

    async def _unload(self, key: ModelKey, _: Operation) -> None:
        if self._current == key:
            self._current = None
        await self._swap.remove([resident for resident in self._residents if resident.key == key])

    async def _unload_idle(self, resident: Resident, _: Operation) -> None:
        await self._swap.remove([resident])
        log.info("unloaded %s after %d s without use", resident.key.ref, self._threshold_s)

    # Requests and time

    async def _acquire(self) -> Resident:
        deadline_s = self._clock.monotonic_s() + self._policy.load_wait_s
        while True:
            if self._operations.is_closed:
                raise ShuttingDown
            resident = self._residents.find(self._current)
            if resident is not None and resident.is_ready:
                resident.leases += 1
                return resident
            operation = self._operations.current
            if operation is None:
                key = self._current
                if key is None:
                    raise ModelNotLoaded
                load = partial(self._load, key, replaced=None)
                operation = self._operations.begin(f"loading {key.ref}", key, load, implicit=True)
            await self._operations.wait(operation, deadline_s)

    async def _reap(self) -> None:
        """Unload models that nobody used for the threshold, counted from the end of the last request."""
        while True:
            delay_s = None
            idle = self._residents.idle()
            if idle and self._operations.current is None and self._threshold_s != NEVER_S:
                delay_s = idle[0].last_used_s + self._threshold_s - self._clock.monotonic_s()
            if delay_s is not None and delay_s <= 0:
                idle[0].state = ModelState.DRAINING  # now, so that no request gets in before the task runs
                unload = partial(self._unload_idle, idle[0])
                self._operations.begin(f"unloading {idle[0].key.ref}", idle[0].key, unload, implicit=True)
            else:
                await self._residents.changed(delay_s)

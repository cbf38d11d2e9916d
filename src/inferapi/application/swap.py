"""How one model takes the place of others: check, fetch, drain, unload, load, and back again if that fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from inferapi.application.admission import Admission, ran_out_of_memory
from inferapi.application.operations import Operation
from inferapi.application.policy import LifecyclePolicy, ModelKey
from inferapi.application.residents import Resident, Residents, memory_bytes, unwritten_bytes
from inferapi.domain.errors import InferapiError, OutOfMemory
from inferapi.domain.model import EngineFacts, EngineSpec, FitReport, ModelProfile, ModelState
from inferapi.domain.ports import EngineLauncher, ModelRepository

log = logging.getLogger(__name__)

_GB = 1e9


class ModelSwap:
    """The steps of loading and unloading; ``ModelLifecycle`` decides when, one operation at a time."""

    def __init__(
        self,
        models: ModelRepository,
        launcher: EngineLauncher,
        admission: Admission,
        residents: Residents,
        policy: LifecyclePolicy,
    ) -> None:
        self._models = models
        self._launcher = launcher
        self._admission = admission
        self._residents = residents
        self._policy = policy
        self._watchers: set[asyncio.Task[None]] = set()

    async def fit(self, key: ModelKey) -> FitReport:
        """What loading would need, without loading."""
        profile = await self._models.profile(key.ref)
        return self._report(profile, key, self._making_room_for(key, None))

    async def load(self, key: ModelKey, operation: Operation, replaced: ModelKey | None) -> Resident:
        """Load a model, in place of ``replaced`` if given; whoever must make room is back if it fails.

        Raises:
            ModelUnavailable: it cannot be had, does not fit, or could not be loaded; a note says what serves.
        """
        try:
            profile = await self._models.profile(key.ref)
            self._admission.require(self._report(profile, key, self._making_room_for(key, replaced)), profile)
            operation.stage = ModelState.DOWNLOADING
            path = await self._models.fetch(key.ref)
        except InferapiError as error:
            for resident in self._residents:
                error.add_note(f"Model {resident.key.ref} is still serving.")
            raise
        victims = self._making_room_for(key, replaced)
        await self.remove(victims)
        operation.stage = ModelState.LOADING
        try:
            report = self._report(profile, key, [])
            self._admission.require(report, profile)
            try:
                resident = await self._launch(key, self._admission.spec(key, path, report))
            except OutOfMemory as error:
                raise ran_out_of_memory(report) from error
        except Exception as error:  # whatever it was, who served before must serve again
            await self._restore(victims, error)
            raise
        _log_loaded(resident.engine.facts)
        return resident

    async def remove(self, residents: Sequence[Resident]) -> None:
        """Drain and end them."""
        for resident in residents:
            resident.state = ModelState.DRAINING
        await self._residents.drained(residents, self._policy.drain_timeout_s)
        for resident in residents:
            resident.state = ModelState.UNLOADING
        await asyncio.gather(*(resident.engine.aclose() for resident in residents))
        for resident in residents:
            self._residents.discard(resident)

    async def drain(self) -> None:
        """Let those that run finish until the drain deadline, then end every engine."""
        await self.remove(list(self._residents))
        await asyncio.gather(*self._watchers)

    async def _launch(self, key: ModelKey, spec: EngineSpec) -> Resident:
        resident = self._residents.add(key, spec, await self._launcher.launch(spec))
        watcher = asyncio.create_task(self._watch(resident))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        return resident

    async def _restore(self, victims: Sequence[Resident], error: Exception) -> None:
        """Bring back what had to make room for a load that failed, and note on the error how that went."""
        for victim in victims:
            try:
                await self._launch(victim.key, victim.spec)
            except Exception:
                log.exception("%s could not be brought back", victim.key.ref)
                error.add_note(f"Model {victim.key.ref} could not be brought back; the next request tries again.")
            else:
                error.add_note(f"Model {victim.key.ref} is serving again.")

    async def _watch(self, resident: Resident) -> None:
        """Forget a model whose engine died; the next request loads it again."""
        await resident.engine.wait_closed()
        if resident.state is not ModelState.UNLOADING and self._residents.discard(resident):
            log.error("model %s crashed with %d requests in flight", resident.key.ref, resident.leases)

    def _making_room_for(self, key: ModelKey, replaced: ModelKey | None) -> list[Resident]:
        return self._residents.making_room_for(key, replaced, self._policy.max_resident_models)

    def _report(self, profile: ModelProfile, key: ModelKey, victims: Sequence[Resident]) -> FitReport:
        return self._admission.report(
            profile,
            key.options,
            resident_bytes=memory_bytes(self._residents),
            reclaimable_bytes=memory_bytes(victims),
            unwritten_bytes=unwritten_bytes(resident for resident in self._residents if resident not in victims),
        )


def _log_loaded(facts: EngineFacts) -> None:
    log.info(
        "loaded %s in %.2f s: %s on %s, %.2f GB of weights, attention %s (%s), %s batching%s, context %d tokens",
        facts.model,
        facts.load_s,
        facts.dtype,
        facts.device,
        facts.weights_bytes / _GB,
        facts.attention,
        facts.attention_reason,
        facts.batching,
        f" ({facts.batching_reason})" if facts.batching_reason else "",
        facts.context_window_tokens,
    )

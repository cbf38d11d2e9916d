"""How a model leaves memory: drain, end, and a receipt for what came back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from inferapi.application.fleet import Fleet
from inferapi.application.journal import EventKind
from inferapi.application.residents import Resident
from inferapi.domain.errors import ModelsInUse
from inferapi.domain.model import DeviceKind
from inferapi.domain.ports import GpuProbe
from inferapi.domain.states import ModelState
from inferapi.domain.telemetry import UnloadReason

log = logging.getLogger(__name__)

_RECLAIM_POLL_S = 0.25
_RECLAIM_TIMEOUT_S = 10.0
_RECLAIMED_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Departure:
    """Why models go, and how long they may take.

    Attributes:
        why: in one word; ``reason`` says it to people.
        drain_timeout_s: how long the requests that use them may go on.
        cuts: what still runs then is cut off; otherwise the models stay after all.
    """

    why: UnloadReason
    reason: str
    drain_timeout_s: float
    cuts: bool


class ModelUnloads:
    """Takes models out of memory. Several may want the same one gone; it goes once."""

    def __init__(self, fleet: Fleet, probe: GpuProbe) -> None:
        self._fleet = fleet
        self._probe = probe

    def begin(self, resident: Resident, departure: Departure) -> asyncio.Task[None]:
        """No more leases from this moment on; the rest happens in the background."""
        resident.leaves()
        return self._fleet.spawn(self.remove([resident], departure), f"unloading {resident.key.ref}")

    async def remove(self, residents: Sequence[Resident], departure: Departure) -> None:
        """Wait until nobody uses them, then end them. They were told ``leaves`` before.

        Raises:
            ModelsInUse: somebody used them for too long; those in use stay.
        """
        may_end = False
        try:
            may_end = await self._drained(residents, departure.drain_timeout_s) or departure.cuts
        finally:
            if not may_end:
                self.reprieve(residents)
        if not may_end:
            raise ModelsInUse(models=", ".join(str(r.key.ref) for r in residents if r.leases))
        await asyncio.gather(*(self._ended(resident, departure) for resident in residents))

    def reprieve(self, residents: Sequence[Resident]) -> None:
        """They need not go after all, as far as this departure is concerned."""
        for resident in residents:
            resident.stays()
        self._fleet.bell.ring()

    async def _drained(self, residents: Sequence[Resident], timeout_s: float) -> bool:
        deadline_s = self._fleet.clock.monotonic_s() + timeout_s
        while any(resident.leases and resident.state is ModelState.DRAINING for resident in residents):
            remaining_s = deadline_s - self._fleet.clock.monotonic_s()
            if remaining_s <= 0:
                return False
            await self._fleet.bell.changed(remaining_s)
        return True

    async def _ended(self, resident: Resident, departure: Departure) -> None:
        if resident.state is ModelState.DRAINING:
            resident.to(ModelState.UNLOADING)
            resident.ending = self._fleet.spawn(self._end(resident, departure), f"ending {resident.key.ref}")
        if resident.ending is not None:
            await asyncio.shield(resident.ending)

    async def _end(self, resident: Resident, departure: Departure) -> None:
        clock = self._fleet.clock
        started_s, held_bytes, cut, returned_bytes = clock.monotonic_s(), resident.held_bytes, resident.leases, 0
        try:
            free_before_bytes = self._free_bytes()
            await resident.engine.aclose()
            resident.to(ModelState.RECLAIMING)
            returned_bytes = await self._reclaimed(resident, held_bytes, free_before_bytes)
        except Exception:  # whatever is left of it, nobody shall wait for it
            log.exception("%s did not end in order", resident.key.ref)
        if resident.state is ModelState.UNLOADING:
            resident.to(ModelState.RECLAIMING)
        resident.to(ModelState.UNLOADED)
        self._fleet.residents.discard(resident)
        self._fleet.journal.record(
            EventKind.UNLOADED,
            str(resident.key.ref),
            departure.reason,
            held_bytes=held_bytes,
            returned_bytes=returned_bytes,
            duration_s=round(clock.monotonic_s() - started_s, 3),
            requests_cut_off=cut,
        )
        self._fleet.telemetry.model_unloaded(str(resident.key.ref), departure.why)

    def _free_bytes(self) -> int:
        """As the probe says; a probe that fails must not keep a model from going."""
        try:
            return self._probe.device().free_bytes
        except Exception:
            log.exception("the memory cannot be read")
            return 0

    async def _reclaimed(self, resident: Resident, held_bytes: int, free_before_bytes: int) -> int:
        """The bytes that came back.

        Of a process on the host that is all it held: the kernel takes its pages before its parent can bury it, and
        what other processes do to free memory meanwhile says nothing. A GPU's driver may take a while.
        """
        if resident.spec.device is DeviceKind.CPU:
            return held_bytes
        deadline_s = self._fleet.clock.monotonic_s() + _RECLAIM_TIMEOUT_S
        while True:
            returned_bytes = max(self._free_bytes() - free_before_bytes, 0)
            if returned_bytes >= _RECLAIMED_SHARE * held_bytes:
                return returned_bytes
            if self._fleet.clock.monotonic_s() >= deadline_s:
                log.warning("%s gave back %d of %d bytes only", resident.key.ref, returned_bytes, held_bytes)
                return returned_bytes
            await self._fleet.clock.sleep(_RECLAIM_POLL_S)

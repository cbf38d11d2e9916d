"""An engine from the launcher, for a job: given up when it stalls, and never left behind."""

from __future__ import annotations

import asyncio

from inferapi.application.fleet import Fleet
from inferapi.application.jobs import LoadJob
from inferapi.domain.model import EngineSpec
from inferapi.domain.ports import EngineLauncher, TextEngine


class Launching:
    """Launches engines within a job."""

    def __init__(self, fleet: Fleet, launcher: EngineLauncher) -> None:
        self._fleet = fleet
        self._launcher = launcher

    async def engine(self, job: LoadJob, spec: EngineSpec) -> TextEngine:
        """The loaded model. Whoever is cancelled in the very moment in which it is ready leaves no engine behind.

        Raises:
            LoadStalled: nothing moved for too long.
            others: as ``EngineLauncher.launch``.
        """
        launching = asyncio.ensure_future(self._launcher.launch(spec, job.tell))
        try:
            return await job.unless_stalled(launching, self._fleet.policy.load_stall_timeout_s)
        except BaseException:
            if launching.done() and not launching.cancelled() and launching.exception() is None:
                ending = self._fleet.spawn(launching.result().aclose(), f"ending {job.key.ref}")
                await asyncio.shield(ending)
            raise

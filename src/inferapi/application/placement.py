"""Where a model finds a place: who would have to go, and what fits then. Looks and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inferapi.application import eviction
from inferapi.application.admission import Admission
from inferapi.application.fleet import Fleet
from inferapi.application.jobs import LoadJob
from inferapi.application.memory_fit import Room
from inferapi.application.policy import ModelKey
from inferapi.application.residents import Resident
from inferapi.domain.errors import ModelsInUse
from inferapi.domain.model import Alternative, FitReport, ModelProfile


@dataclass(frozen=True, slots=True)
class FitAnswer:
    """What ``dry_run`` answers.

    Attributes:
        fits: with ``would_evict`` gone there is room.
        would_evict: the models that would go, in the order of the plan.
        alternatives: other ways to load it that would fit then, the best first.
        expected_load_s: by earlier loads; ``None`` without one.
    """

    report: FitReport
    fits: bool
    would_evict: tuple[str, ...]
    alternatives: tuple[Alternative, ...]
    expected_load_s: float | None


class Placement:
    """Weighs a model that is to come against those that are there."""

    def __init__(self, fleet: Fleet, admission: Admission) -> None:
        self._fleet = fleet
        self._admission = admission

    def report(self, key: ModelKey, profile: ModelProfile, gone: Sequence[Resident]) -> FitReport:
        """What it needs against what there is, once these are gone."""
        return self._admission.report(key, profile, self._room(gone))

    def _room(self, gone: Sequence[Resident]) -> Room:
        residents = list(self._fleet.residents)
        return self._admission.room(
            resident_bytes=sum(resident.held_bytes for resident in residents),
            reclaimable_bytes=sum(resident.held_bytes for resident in gone),
            unwritten_bytes=sum(resident.unwritten_bytes for resident in residents if resident not in gone),
        )

    def victims(
        self, key: ModelKey, profile: ModelProfile, replaced: ModelKey | None, *, busy_too: bool = False
    ) -> list[Resident] | None:
        """Who makes room: those who go in any case, and the cheapest of the others; ``None`` if that is not enough.

        Pinned models never make room, and models in use only with ``busy_too``.
        """
        going = self.going(key, replaced)
        others = [resident for resident in self._fleet.residents if resident not in going]
        now_s = self._fleet.clock.monotonic_s()

        def enough(chosen: Sequence[Resident]) -> bool:
            places = self._fleet.policy.max_resident_models - (len(others) - len(chosen))
            return places >= 1 and self.report(key, profile, [*going, *chosen]).fits

        chosen = eviction.cheapest(
            [resident for resident in others if not resident.pinned and (busy_too or resident.is_free)],
            lambda resident: eviction.cost(
                load_s=resident.engine.facts.load_s, idle_s=0.0 if resident.leases else now_s - resident.last_used_s
            ),
            enough,
        )
        return None if chosen is None else [*going, *chosen]

    def going(self, key: ModelKey, replaced: ModelKey | None) -> list[Resident]:
        """Who goes in any case: the replaced model, the same one loaded otherwise, those on their way out."""
        return [
            resident
            for resident in self._fleet.residents
            if resident.leavers or resident.key.ref == key.ref or (replaced is not None and resident.key == replaced)
        ]

    def answer(self, key: ModelKey, profile: ModelProfile, replaced: ModelKey | None) -> FitAnswer:
        """What loading would need, and whom it would displace.

        Raises:
            QuantizationRefused: the model's weights are stored quantized.
        """
        self._admission.require_quantizable(key, profile)
        victims = self.victims(key, profile, replaced)
        if victims is None:
            victims = self.victims(key, profile, replaced, busy_too=True)
        gone = self._all_movable(key, replaced) if victims is None else victims
        return FitAnswer(
            report=self.report(key, profile, gone),
            fits=victims is not None,
            would_evict=tuple(str(victim.key.ref) for victim in victims or () if victim.key != key),
            alternatives=self._admission.alternatives(key, profile, self._room(gone)),
            expected_load_s=self._admission.expected_load_s(key),
        )

    def require_possible(self, job: LoadJob, profile: ModelProfile) -> None:
        """Nothing, if there is a way: so that what is refused evicts nothing and downloads nothing.

        Raises:
            QuantizationRefused: the model's weights are stored quantized.
            ModelTooLarge, InsufficientMemory: not even with everybody gone who may go.
            ModelsInUse: there are too many who may not go.
        """
        self._admission.require_quantizable(job.key, profile)
        if self.victims(job.key, profile, job.replaces, busy_too=True) is None:
            self.refuse(job, profile)

    def refuse(self, job: LoadJob, profile: ModelProfile) -> None:
        """Say why there is no place.

        Raises:
            ModelTooLarge, InsufficientMemory, ModelsInUse: one of them, always.
        """
        gone = self._all_movable(job.key, job.replaces)
        self._admission.require(self.report(job.key, profile, gone), profile)
        going = self.going(job.key, job.replaces)
        raise ModelsInUse(models=", ".join(str(r.key.ref) for r in self._fleet.residents if r not in going))

    def _all_movable(self, key: ModelKey, replaced: ModelKey | None) -> list[Resident]:
        going = self.going(key, replaced)
        return [resident for resident in self._fleet.residents if resident in going or not resident.pinned]

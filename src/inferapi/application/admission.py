"""Whether a model may be loaded: its name against the operator's list, its bytes against the memory."""

from __future__ import annotations

from dataclasses import asdict, replace
from fnmatch import fnmatchcase

from inferapi.application import memory_fit
from inferapi.application.calibration import Calibration
from inferapi.application.policy import LifecyclePolicy, ModelKey
from inferapi.domain.errors import InsufficientMemory, ModelNotAllowed, ModelTooLarge
from inferapi.domain.model import (
    Alternative,
    Device,
    EngineFacts,
    EngineSpec,
    FitReport,
    LoadOptions,
    ModelProfile,
    ModelRef,
)
from inferapi.domain.ports import GpuProbe

_KEPT = 256


class Admission:
    """Says yes, or why not; changes nothing."""

    def __init__(self, probe: GpuProbe, policy: LifecyclePolicy) -> None:
        self._probe = probe
        self._policy = policy
        self._calibration = Calibration()
        self._load_s: dict[ModelKey, float] = {}

    def key(self, ref: ModelRef, options: LoadOptions | None) -> ModelKey:
        """The load that is meant.

        Raises:
            ModelNotAllowed: the operator's list does not hold the name.
        """
        if not any(fnmatchcase(ref.name, pattern) for pattern in self._policy.allowed_models):
            raise ModelNotAllowed(model=str(ref))
        options = options or self._policy.default_options
        dtype = memory_fit.target_dtype(options, self.device())  # so that "auto" and what it stands for are the same
        return ModelKey(ref, replace(options, dtype=dtype))

    def device(self) -> Device:
        """Where models live, and how full it is now."""
        return self._probe.device()

    def room(self, *, resident_bytes: int, reclaimable_bytes: int, unwritten_bytes: int) -> memory_fit.Room:
        """What a model may use now, once ``reclaimable_bytes`` are given back."""
        return memory_fit.room_for(
            self.device(),
            budget_bytes=self._policy.memory_budget_bytes,
            resident_bytes=resident_bytes,
            reclaimable_bytes=reclaimable_bytes,
            unwritten_bytes=unwritten_bytes,
        )

    def report(self, key: ModelKey, profile: ModelProfile, room: memory_fit.Room) -> FitReport:
        """What the model needs against what there is."""
        return memory_fit.fit(
            profile,
            key.options,
            self.device(),
            room,
            max_batch=self._policy.max_batch,
            correction=self._calibration.ratio((key, profile.commit)),
        )

    def alternatives(self, key: ModelKey, profile: ModelProfile, room: memory_fit.Room) -> tuple[Alternative, ...]:
        """Other ways to load it that would fit."""
        return memory_fit.alternatives(
            profile,
            key.options,
            self.device(),
            room,
            max_batch=self._policy.max_batch,
            correction=self._calibration.ratio((key, profile.commit)),
        )

    def learn(self, key: ModelKey, profile: ModelProfile, report: FitReport, facts: EngineFacts) -> None:
        """What a load turned out to take corrects the next estimate."""
        self._calibration.learn((key, profile.commit), report.loaded_bytes, facts.memory_bytes)
        self._load_s[key] = facts.load_s
        while len(self._load_s) > _KEPT:
            del self._load_s[next(iter(self._load_s))]

    def expected_load_s(self, key: ModelKey) -> float | None:
        """How long its last load took, without a download."""
        return self._load_s.get(key)

    def require(self, report: FitReport, profile: ModelProfile) -> None:
        """Nothing, if it fits.

        Raises:
            ModelTooLarge: it never will.
            InsufficientMemory: it does not now.
        """
        if not report.fits:
            error = InsufficientMemory if report.can_ever_fit else ModelTooLarge
            raise error(**_facts(report), hint=memory_fit.hint(report, profile))

    def spec(self, key: ModelKey, path: str, report: FitReport) -> EngineSpec:
        """What a worker must know to load what was admitted."""
        device = self.device()
        return EngineSpec(
            model=str(key.ref),
            path=path,
            device=device.kind,
            device_count=device.count,
            dtype=report.dtype,
            kv_cache_tokens=report.kv_cache_tokens,
            max_batch=self._policy.max_batch,
            max_queue=self._policy.max_queue,
            promised_bytes=report.needed_bytes,
            threads=self._policy.threads,
        )


def ran_out_of_memory(report: FitReport) -> InsufficientMemory:
    """The estimate said yes, and loading found otherwise."""
    return InsufficientMemory(**_facts(report), hint="The estimate said it fits, but memory ran out while loading.")


def _facts(report: FitReport) -> dict[str, int | str]:
    return asdict(report) | {"needed_bytes": report.needed_bytes, "device": report.device.value}

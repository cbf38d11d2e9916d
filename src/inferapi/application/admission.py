"""Whether a model may be loaded: its name against the operator's list, its bytes against the memory."""

from __future__ import annotations

from dataclasses import asdict, replace
from fnmatch import fnmatchcase

from inferapi.application import memory_advice, memory_fit
from inferapi.application.calibration import Calibration
from inferapi.application.policy import LifecyclePolicy, ModelKey
from inferapi.application.weight_memory import quantization_problem
from inferapi.domain.errors import Fact, InsufficientMemory, ModelNotAllowed, ModelTooLarge, QuantizationRefused
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
    """Says yes, or why not; changes nothing.

    Raises:
        QuantizationRefused: the operator wants all models quantized, and this machine cannot do it.
    """

    def __init__(self, probe: GpuProbe, policy: LifecyclePolicy) -> None:
        self._probe = probe
        self._policy = policy
        self._calibration = Calibration()
        self._load_s: dict[ModelKey, float] = {}
        if policy.default_options.quantization is not None:
            self._resolved(policy.default_options)

    def key(self, ref: ModelRef, options: LoadOptions | None) -> ModelKey:
        """The load that is meant.

        Raises:
            ModelNotAllowed: the operator's list does not hold the name.
            QuantizationRefused: this machine cannot quantize.
        """
        if not any(fnmatchcase(ref.name, pattern) for pattern in self._policy.allowed_models):
            raise ModelNotAllowed(model=str(ref))
        return ModelKey(ref, self._resolved(options or self._policy.default_options))

    def _resolved(self, options: LoadOptions) -> LoadOptions:
        """With the dtype that ``auto`` stands for, so that the two are the same load."""
        device = self.device()
        options = replace(options, dtype=memory_fit.target_dtype(options, device))
        problem = quantization_problem(options, device)
        if problem is not None:
            raise QuantizationRefused(quantization=options.quantization, problem=problem)
        return options

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
        return memory_advice.alternatives(
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

    def require_quantizable(self, key: ModelKey, profile: ModelProfile) -> None:
        """Nothing, if the model's weights can take the format that is asked for.

        Raises:
            QuantizationRefused: they have another one already.
        """
        if key.options.quantization is not None and profile.prequantized:
            problem = f"those of model {key.ref} are stored quantized; load it with quantization null"
            raise QuantizationRefused(quantization=key.options.quantization, problem=problem)

    def require(self, report: FitReport, profile: ModelProfile) -> None:
        """Nothing, if it fits.

        Raises:
            ModelTooLarge: it never will.
            InsufficientMemory: it does not now.
        """
        if not report.fits:
            error = InsufficientMemory if report.can_ever_fit else ModelTooLarge
            hint = memory_advice.hint(report, profile, self.device(), max_batch=self._policy.max_batch)
            raise error(**_facts(report), hint=hint)

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
            quantization=key.options.quantization,
        )


def ran_out_of_memory(report: FitReport) -> InsufficientMemory:
    """The estimate said yes, and loading found otherwise."""
    return InsufficientMemory(**_facts(report), hint="The estimate said it fits, but memory ran out while loading.")


def _facts(report: FitReport) -> dict[str, Fact]:
    return asdict(report) | {"needed_bytes": report.needed_bytes, "device": report.device.value}

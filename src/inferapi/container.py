"""The composition root: every choice of a concrete class, on one page."""

from __future__ import annotations

from dependency_injector import containers, providers

from inferapi.adapters.host_memory import HostMemoryProbe
from inferapi.adapters.memory_sessions import MemorySessionStore
from inferapi.adapters.nvml_gpu import NvmlGpuProbe
from inferapi.adapters.system_clock import SystemClock
from inferapi.adapters.transformers_repository import TransformersRepository
from inferapi.api.app import create_app
from inferapi.api.schema import SamplingPolicy
from inferapi.application.conversation import Conversation
from inferapi.application.inference import Inference
from inferapi.application.lifecycle import ModelLifecycle
from inferapi.application.policy import LifecyclePolicy
from inferapi.domain.model import LoadOptions, ModelRef
from inferapi.domain.ports import GpuProbe
from inferapi.settings import Settings
from inferapi.worker.launcher import ForkServerLauncher


class NoGpuError(Exception):
    """A GPU was asked for by name, and there is none."""


def make_probe(device: str) -> GpuProbe:
    """GPUs where there are any, unless the operator says otherwise.

    Raises:
        NoGpuError: ``cuda`` was asked for; there is no silent fall back to the CPU.
    """
    probe = NvmlGpuProbe.detect() if device != "cpu" else None
    if probe is None and device == "cuda":
        raise NoGpuError("INFERAPI_DEVICE is cuda, but no NVIDIA GPU answers")
    return probe or HostMemoryProbe()


def make_policy(settings: Settings) -> LifecyclePolicy:
    """What the operator decided about models."""
    return LifecyclePolicy(
        max_resident_models=settings.max_resident_models,
        inactivity_threshold_s=settings.inactivity_threshold_s,
        drain_timeout_s=settings.drain_timeout_s,
        load_wait_s=settings.request_timeout_s,
        load_stall_timeout_s=settings.load_stall_timeout_s,
        max_queue_age_s=settings.max_queue_age_s,
        memory_budget_bytes=settings.memory_budget_bytes,
        allowed_models=settings.allowed_models,
        pinned_models=settings.pinned_models,
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
        threads=settings.threads,
        default_options=LoadOptions(dtype=settings.dtype),
        preload=ModelRef.parse(settings.model) if settings.model else None,
    )


class Container(containers.DeclarativeContainer):
    """``Container(settings=…).app()`` is the application."""

    settings = providers.Dependency(instance_of=Settings)

    clock = providers.Singleton(SystemClock)
    probe = providers.Singleton(make_probe, settings.provided.device)
    models = providers.Singleton(
        TransformersRepository,
        settings.provided.models_dir,
        silence_timeout_s=settings.provided.load_stall_timeout_s,
    )
    launcher = providers.Singleton(
        ForkServerLauncher,
        log_level=settings.provided.log_level,
        log_as_text=settings.provided.logs_as_text,
        heartbeat_timeout_s=settings.provided.worker_heartbeat_timeout_s,
    )
    sessions = providers.Singleton(MemorySessionStore, clock, settings.provided.session_ttl_s)

    lifecycle = providers.Singleton(
        ModelLifecycle, models, launcher, probe, clock, providers.Callable(make_policy, settings)
    )
    inference = providers.Singleton(Inference, lifecycle, clock, settings.provided.request_timeout_s)
    conversation = providers.Singleton(
        Conversation,
        inference,
        sessions,
        clock,
        default_system_prompt=settings.provided.system_prompt,
        turn_wait_s=settings.provided.session_wait_s,
    )
    app = providers.Singleton(
        create_app,
        lifecycle,
        inference,
        conversation,
        sampling=providers.Factory(
            SamplingPolicy,
            max_new_tokens=settings.provided.max_new_tokens,
            temperature=settings.provided.temperature,
        ),
        max_body_bytes=settings.provided.max_body_bytes,
    )

"""The composition root: every choice of a concrete class, on one page."""

from __future__ import annotations

import logging
from pathlib import Path
from urllib.parse import unquote

from dependency_injector import containers, providers

from inferapi.adapters.host_memory import HostMemoryProbe
from inferapi.adapters.measured_sessions import MeasuredSessionStore
from inferapi.adapters.memory_sessions import MemorySessionStore
from inferapi.adapters.nvml_gpu import NvmlGpuProbe
from inferapi.adapters.prometheus_metrics import PrometheusMetrics
from inferapi.adapters.redis_sessions import RedisSessionStore
from inferapi.adapters.sqlite_sessions import SqliteSessionStore
from inferapi.adapters.system_clock import SystemClock
from inferapi.adapters.transformers_repository import TransformersRepository
from inferapi.api.app import OpenAiUseCases, create_app
from inferapi.api.auth import Access, ApiKey
from inferapi.api.openai.schema import OpenAiPolicy
from inferapi.api.schema import SamplingPolicy
from inferapi.application.catalog import Catalog
from inferapi.application.completion import Completion
from inferapi.application.conversation import Conversation
from inferapi.application.embedding import Embedding
from inferapi.application.inference import Inference
from inferapi.application.key_limits import KeyLimits
from inferapi.application.lifecycle import ModelLifecycle
from inferapi.application.policy import LifecyclePolicy, SessionPolicy
from inferapi.application.responses import Responses
from inferapi.application.sessions import Sessions
from inferapi.application.turns import TurnGate
from inferapi.domain.chat import SessionLimits
from inferapi.domain.model import LoadOptions, ModelRef
from inferapi.domain.ports import Clock, EngineLauncher, GpuProbe, SessionStore
from inferapi.domain.tracing import Tracing, Untraced
from inferapi.settings import Settings
from inferapi.worker.launcher import ForkServerLauncher

log = logging.getLogger(__name__)


class NoGpuError(Exception):
    """A GPU was asked for by name, and there is none."""


class StoreUrlError(Exception):
    """The session store's URL is no good. The message does not repeat it: it may hold a password."""


class TelemetryError(Exception):
    """Traces were asked for and cannot be exported."""


def make_probe(device: str) -> GpuProbe:
    """GPUs where there are any, unless the operator says otherwise.

    Raises:
        NoGpuError: ``cuda`` was asked for; there is no silent fall back to the CPU.
    """
    probe = NvmlGpuProbe.detect() if device != "cpu" else None
    if probe is None and device == "cuda":
        raise NoGpuError("INFERAPI_DEVICE is cuda, but no NVIDIA GPU answers")
    return probe or HostMemoryProbe()


def make_session_store(settings: Settings, clock: Clock) -> SessionStore:
    """The store that the URL names; nothing is opened or connected yet.

    Raises:
        StoreUrlError: it has an option that Redis connections do not have.
    """
    url, ttl_s = settings.session_store_url, float(settings.session_ttl_s)
    scheme, _, rest = url.partition("://")
    if scheme == "memory":
        return MemorySessionStore(clock, ttl_s)
    if scheme == "sqlite":  # three slashes and a relative path, or four and an absolute one, as SQLAlchemy has it
        return SqliteSessionStore(Path(unquote(rest.removeprefix("/"))), clock, ttl_s)
    try:
        return RedisSessionStore(url, ttl_s, clock)
    except ValueError as error:
        raise StoreUrlError(f"INFERAPI_SESSION_STORE_URL: {error}") from error


def make_tracing(settings: Settings, clock: Clock) -> Tracing:
    """Exporting to the collector where there is one; the libraries for that are an extra, imported only then.

    Without them a collector that only the environment of all programs names is left out, with a warning.

    Raises:
        TelemetryError: they are not installed, or a variable of theirs in the environment is no good.
    """
    endpoint = settings.otel_endpoint
    if endpoint is None:
        return Untraced()
    try:
        from inferapi.adapters.otel_tracing import OtelTracing  # noqa: PLC0415 - an extra
    except ImportError as error:
        if "otel_endpoint" not in settings.model_fields_set:
            log.warning("OTEL_EXPORTER_OTLP_ENDPOINT is left out: it needs pip install 'inferapi[otel]'")
            return Untraced()
        problem = f"INFERAPI_OTEL_ENDPOINT needs more libraries: pip install 'inferapi[otel]' ({error.name} is missing)"
        raise TelemetryError(problem) from error
    try:
        return OtelTracing.to(endpoint, clock)
    except (ValueError, RuntimeError) as error:
        raise TelemetryError(f"A variable OTEL_… in the environment is no good: {error}") from error


def traced_engines(tracing: Tracing, launcher: EngineLauncher) -> EngineLauncher:
    """The launcher, whose engines tell of their generations if anybody listens."""
    return tracing.engines(launcher)


def make_session_policy(settings: Settings) -> SessionPolicy:
    """What the operator decided about sessions."""
    return SessionPolicy(
        default_system_prompt=settings.system_prompt,
        wait_s=settings.session_wait_s,
        lease_s=settings.session_lease_s,
        limits=SessionLimits(settings.session_max_turns, settings.session_max_bytes),
    )


def make_access(settings: Settings, clock: Clock) -> Access:
    """Who may do what, and how much of it."""
    limits = KeyLimits(
        clock,
        requests_per_minute=settings.key_requests_per_minute,
        max_concurrency=settings.key_max_concurrency,
    )
    keys = [ApiKey(key.id, key.digest, key.scopes) for key in settings.api_keys]
    return Access(keys, limits, allows_anonymous=settings.allow_anonymous)


def make_metrics(settings: Settings) -> PrometheusMetrics:
    """Metrics that know the models that the operator names, so that these have series from the start."""
    named = (settings.model, *settings.allowed_models, *settings.pinned_models)
    return PrometheusMetrics([name for name in named if name and not set(name) & set("*?[")])


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
        loads_on_demand=settings.load_on_demand,
        max_batch=settings.max_batch,
        max_queue=settings.max_queue,
        threads=settings.threads,
        default_options=LoadOptions(settings.dtype, settings.quantization),
        preload=ModelRef.parse(settings.model) if settings.model else None,
    )


class Container(containers.DeclarativeContainer):
    """``Container(settings=…).app()`` is the application."""

    settings = providers.Dependency(instance_of=Settings)

    clock = providers.Singleton(SystemClock)
    metrics = providers.Singleton(make_metrics, settings)
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
        telemetry=metrics,
    )
    tracing = providers.Singleton(make_tracing, settings, clock)
    traced_launcher = providers.Singleton(traced_engines, tracing, launcher)
    session_store = providers.Singleton(make_session_store, settings, clock)
    measured_sessions = providers.Singleton(MeasuredSessionStore, session_store, metrics)

    lifecycle = providers.Singleton(
        ModelLifecycle,
        models,
        traced_launcher,
        probe,
        clock,
        providers.Callable(make_policy, settings),
        metrics,
    )
    inference = providers.Singleton(Inference, lifecycle, clock, settings.provided.request_timeout_s)
    session_policy = providers.Singleton(make_session_policy, settings)
    turns = providers.Singleton(TurnGate, measured_sessions, clock, session_policy)
    sessions = providers.Singleton(Sessions, measured_sessions, turns, clock, session_policy)
    conversation = providers.Singleton(Conversation, inference, turns, clock, session_policy)
    completion = providers.Singleton(Completion, lifecycle, clock, settings.provided.request_timeout_s)
    responses = providers.Singleton(Responses, completion, sessions, turns, clock)
    embedding = providers.Singleton(Embedding, lifecycle, clock, settings.provided.request_timeout_s)
    catalog = providers.Singleton(Catalog, lifecycle, models, clock, settings.provided.allowed_models)
    app = providers.Singleton(
        create_app,
        lifecycle,
        inference,
        conversation,
        sessions,
        providers.Factory(OpenAiUseCases, completion, responses, embedding, catalog),
        access=providers.Factory(make_access, settings, clock),
        sampling=providers.Factory(
            SamplingPolicy,
            max_new_tokens=settings.provided.max_new_tokens,
            temperature=settings.provided.temperature,
        ),
        openai_policy=providers.Factory(
            OpenAiPolicy,
            max_new_tokens=settings.provided.max_new_tokens,
            lenient_params=settings.provided.lenient_params,
        ),
        max_body_bytes=settings.provided.max_body_bytes,
        receive_timeout_s=settings.provided.receive_timeout_s,
        stream_write_timeout_s=settings.provided.stream_write_timeout_s,
        metrics=metrics,
        tracing=tracing,
        cors_origins=settings.provided.cors_origins,
        trusted_hosts=settings.provided.trusted_hosts,
    )

"""The stage of the unit tests: the real application on fakes."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import aclosing

import pytest

pytest.register_assert_rewrite(
    "contracts", "session_contract", "session_list_contract", "metrics_contract", "tracing_contract"
)

from fakes import (  # noqa: E402 - so that its asserts tell what they saw
    FakeClock,
    FakeEngineLauncher,
    FakeGpuProbe,
    FakeModelRepository,
    FlakySessionStore,
    ScriptedEngine,
    make_profile,
    settle,
)
from inferapi.adapters.measured_sessions import MeasuredSessionStore  # noqa: E402
from inferapi.adapters.prometheus_metrics import PrometheusMetrics  # noqa: E402
from inferapi.api.app import OpenAiUseCases, create_app  # noqa: E402
from inferapi.api.auth import Access, ApiKey  # noqa: E402
from inferapi.api.openai.schema import OpenAiPolicy  # noqa: E402
from inferapi.api.schema import SamplingPolicy  # noqa: E402
from inferapi.application.catalog import Catalog  # noqa: E402
from inferapi.application.completion import Completion  # noqa: E402
from inferapi.application.conversation import ChatTurn, Conversation, TurnStored  # noqa: E402
from inferapi.application.embedding import Embedding  # noqa: E402
from inferapi.application.inference import Answered, Inference  # noqa: E402
from inferapi.application.key_limits import KeyLimits  # noqa: E402
from inferapi.application.lifecycle import ModelLifecycle  # noqa: E402
from inferapi.application.policy import LifecyclePolicy, SessionPolicy  # noqa: E402
from inferapi.application.responses import Responses  # noqa: E402
from inferapi.application.sessions import Sessions  # noqa: E402
from inferapi.application.turns import TurnGate  # noqa: E402
from inferapi.domain.chat import SessionLimits  # noqa: E402
from inferapi.domain.generation import Prompt, SamplingParams  # noqa: E402
from inferapi.domain.model import Device, ModelRef  # noqa: E402


class HeldRequest:
    """A request that keeps its lease until ``finish``, or waits for one."""

    def __init__(self, lifecycle: ModelLifecycle, ref: ModelRef | None) -> None:
        self._lifecycle = lifecycle
        self._ref = ref
        self._finished = asyncio.Event()
        self.engine: ScriptedEngine | None = None
        self.task = asyncio.create_task(self._run())

    async def finish(self) -> None:
        """Give the lease back."""
        self._finished.set()
        await settle()

    async def leave(self) -> None:
        """The client is gone."""
        self.task.cancel()
        await settle()

    async def _run(self) -> None:
        async with self._lifecycle.lease(self._ref) as engine:
            self.engine = engine
            await self._finished.wait()


class Stage:
    """Everything that ``container.py`` puts together, on fakes. It knows models gpt2, other and third."""

    def __init__(
        self,
        *words: str,
        request_timeout_s: float = 300.0,
        limits: SessionLimits | None = None,
        device: Device | None = None,
        **policy,
    ) -> None:
        self.held: list[HeldRequest] = []
        self.clock = FakeClock()
        self.probe = FakeGpuProbe(device)
        self.models = FakeModelRepository(*(make_profile(name) for name in ("gpt2", "other", "third", "org/name")))
        self.launcher = FakeEngineLauncher(*words)
        self.store = FlakySessionStore(self.clock)
        self.metrics = PrometheusMetrics()
        measured = MeasuredSessionStore(self.store, self.metrics)
        session_policy = SessionPolicy(
            "Be brief.", wait_s=10.0, lease_s=8.0, limits=limits or SessionLimits(1000, 10**6)
        )
        self.turns = TurnGate(measured, self.clock, session_policy)
        self.elsewhere = TurnGate(self.store, self.clock, session_policy)  # another process on the same store
        self.sessions = Sessions(measured, self.turns, self.clock, session_policy)
        self.lifecycle = ModelLifecycle(
            self.models,
            self.launcher,
            self.probe,
            self.clock,
            LifecyclePolicy(**{"max_batch": 4, **policy}),
            self.metrics,
        )
        self.inference = Inference(self.lifecycle, self.clock, request_timeout_s)
        self.conversation = Conversation(self.inference, self.turns, self.clock, session_policy)
        self.completion = Completion(self.lifecycle, self.clock, request_timeout_s)
        self.openai = OpenAiUseCases(
            self.completion,
            Responses(self.completion, self.sessions, self.turns, self.clock),
            Embedding(self.lifecycle, self.clock, request_timeout_s),
            Catalog(self.lifecycle, self.models, self.clock, policy.get("allowed_models", ("*",))),
        )

    @property
    def engine(self) -> ScriptedEngine:
        """The one that was launched last."""
        return self.launcher.newest

    async def load(self, name: str = "gpt2") -> ScriptedEngine:
        await self.lifecycle.load(ModelRef.parse(name))
        return self.engine

    async def infer(self, text: str = "Hi", *, model: str | None = None, **sampling) -> Answered:
        """One request, to its end."""
        ref = ModelRef.parse(model) if model else None
        prompt, params = Prompt(text=text), SamplingParams(**sampling)
        async with aclosing(self.inference.infer(prompt, params, model=ref)) as items:
            last = [item async for item in items][-1]
        assert isinstance(last, Answered)
        return last

    async def say(
        self,
        text: str,
        session_id: str | None = "s1",
        *,
        owner: str = "",
        idempotency_key: str | None = None,
        model: str | None = None,
    ) -> TurnStored:
        """One turn, to its end."""
        ref = ModelRef.parse(model) if model else None
        asked = ChatTurn(owner, session_id, text, SamplingParams(temperature=0.0), idempotency_key, ref)
        async with aclosing(self.conversation.chat(asked)) as items:
            last = [item async for item in items][-1]
        assert isinstance(last, TurnStored)
        return last

    async def infer_until_held(self, text: str = "Hi") -> asyncio.Task[Answered]:
        """One request that stands before its last word until ``engine.gate`` opens."""
        self.engine.gate.hold()
        request = asyncio.create_task(self.infer(text))
        await settle()
        assert not request.done()
        return request

    async def hold(self, name: str | None = None) -> HeldRequest:
        """A request for that model, or for the current one, that keeps its lease."""
        request = HeldRequest(self.lifecycle, ModelRef.parse(name) if name else None)
        self.held.append(request)
        await settle()
        return request

    def states(self) -> dict[str, str]:
        """The state of each model, as ``/status`` shows it."""
        return {line.name: line.state.value for line in self.lifecycle.status()}

    def told(self, model: str | None = None) -> list[tuple[str, str | None, str]]:
        """The journal: what happened to which model, and why."""
        events = self.lifecycle.events(model=model, limit=1000)
        return [(event.kind.value, event.model, event.reason) for event in events]

    def app(
        self,
        max_body_bytes: int = 4096,
        keys: tuple[ApiKey, ...] = (),
        *,
        lenient_params: bool = False,
        limits: KeyLimits | None = None,
        allows_anonymous: bool = True,
        **more,
    ):
        return create_app(
            self.lifecycle,
            self.inference,
            self.conversation,
            self.sessions,
            self.openai,
            access=Access(keys, limits or KeyLimits(self.clock), allows_anonymous=allows_anonymous),
            sampling=SamplingPolicy(max_new_tokens=600, temperature=0.7),
            openai_policy=OpenAiPolicy(max_new_tokens=600, lenient_params=lenient_params),
            max_body_bytes=max_body_bytes,
            receive_timeout_s=20.0,
            stream_write_timeout_s=30.0,
            metrics=self.metrics,
            **more,
        )

    async def aclose(self) -> None:
        """End it, whatever a test left open."""
        launcher, models = self.launcher, self.models
        for gate in (launcher.gate, launcher.warming_gate, models.profile_gate, models.fetch_gate):
            gate.open()
        for engine in self.launcher.engines:
            engine.closing_gate.open()
        closing = asyncio.create_task(self.lifecycle.aclose())
        await self.clock.advance(1000)
        await closing
        for request in self.held:
            request.task.cancel()
        await asyncio.gather(*(request.task for request in self.held), return_exceptions=True)


@pytest.fixture
async def make_stage():
    """Stages whose idle models are watched, ended after the test."""
    stages: list[Stage] = []

    async def make(*words: str, start: bool = True, **policy) -> Stage:
        stage = Stage(*words, **policy)
        stages.append(stage)
        if start:
            await stage.lifecycle.start()
        return stage

    yield make
    for stage in stages:
        await stage.aclose()


@pytest.fixture
async def stage(make_stage) -> Stage:
    return await make_stage()


@pytest.fixture
async def loop_time(monkeypatch: pytest.MonkeyPatch):
    """Moves the event loop's own clock, for waits that are asyncio's."""
    event_loop = asyncio.get_running_loop()
    passed_s = 0.0
    real_time = event_loop.time
    monkeypatch.setattr(event_loop, "time", lambda: real_time() + passed_s)

    async def move(duration_s: float) -> None:
        nonlocal passed_s
        await settle()
        passed_s += duration_s
        await settle()

    return move


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of whoever runs the tests."""
    for name in [name for name in os.environ if name.upper().startswith(("INFERAPI_", "OTEL_", "WEB_CONCURRENCY"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def root_logger():
    """The root logger, put back afterwards: ``configure_logging`` replaces its handlers."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)

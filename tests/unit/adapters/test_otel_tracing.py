from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from contracts import EngineLauncherContract, TextEngineContract
from fakes import TIMINGS, FakeClock, FakeEngineLauncher, ScriptedEngine
from inferapi.adapters.otel_engines import TracedEngine
from inferapi.adapters.otel_tracing import OtelTracing
from inferapi.adapters.system_clock import SystemClock
from inferapi.domain.chat import Message
from inferapi.domain.errors import ModelLoadFailed, OutOfMemory
from inferapi.domain.generation import EmbeddingRequest, GenerationRequest, Prompt, SamplingParams
from inferapi.domain.model import DeviceKind, EngineSpec
from inferapi.domain.tracing import Arrival
from tracing_contract import PARENT, TracingContract

SPEC = EngineSpec("org/name", "/models/org/name", DeviceKind.CPU, 1, "bfloat16", 4096, 2, 1)
SECRET = "s3cret"


class Heard:
    """A collector in this process, and what it has heard."""

    def __init__(self, clock=None) -> None:
        self.clock = clock or FakeClock()
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        self.tracing = OtelTracing(SimpleSpanProcessor(self.exporter), self.reader, self.clock)

    @property
    def spans(self):
        return self.exporter.get_finished_spans()

    def metrics(self):
        """Name to attributes and the count and sum of each histogram."""
        data = self.reader.get_metrics_data()
        found = {}
        for resource in data.resource_metrics if data else ():
            for metric in resource.scope_metrics[0].metrics:
                points = [(dict(point.attributes), point.count, point.sum) for point in metric.data.data_points]
                found[metric.name] = points
        return found

    async def engine(self, *words):
        launcher = FakeEngineLauncher(*words)
        engine = await self.tracing.engines(launcher).launch(SPEC, lambda *_: None)
        return launcher.newest, engine

    def ask(self, text="one two", **sampling):
        arrived_s = self.clock.monotonic_s()
        return GenerationRequest(Prompt(text=text), SamplingParams(**sampling), arrived_s, arrived_s + 60)


@pytest.fixture
def heard():
    return Heard()


async def listen(engine, request):
    async with aclosing(engine.generate(request)) as chunks:
        return [chunk async for chunk in chunks]


class TestOtelTracing(TracingContract):
    @pytest.fixture
    def tracing(self, heard):
        return heard.tracing


class TestDisabledOtelTracing(TracingContract):
    @pytest.fixture
    def tracing(self, monkeypatch):
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        return Heard().tracing


class TestTracedEngine(TextEngineContract):
    @pytest.fixture
    def engine(self):
        scripted = ScriptedEngine("Hel", "lo", "", " there", max_batch=2, max_queue=1, clock=SystemClock())
        return TracedEngine(scripted, Heard(SystemClock()).tracing._generations)


class TestTracedLauncher(EngineLauncherContract):
    @pytest.fixture
    def launcher(self):
        launcher = FakeEngineLauncher()
        launcher.errors["org/broken"] = [ModelLoadFailed(model="org/broken", problem="no")]
        return Heard(SystemClock()).tracing.engines(launcher)

    @pytest.fixture
    def spec(self):
        return SPEC

    @pytest.fixture
    def broken_spec(self):
        return EngineSpec("org/broken", "/models/org/broken", DeviceKind.CPU, 1, "bfloat16", 4096, 2, 1)


def test_a_request_is_a_span_below_its_callers_named_by_its_route(heard):
    heard.tracing.begin(Arrival("POST", "abc", PARENT)).end("/sessions/{session_id}/fork", 201)
    (span,) = heard.spans
    assert (span.name, span.kind) == ("POST /sessions/{session_id}/fork", SpanKind.SERVER)
    assert f"{span.context.trace_id:032x}" == PARENT.trace_id
    assert f"{span.parent.span_id:016x}" == PARENT.span_id
    assert dict(span.attributes) == {
        "http.request.method": "POST",
        "http.route": "/sessions/{session_id}/fork",
        "http.response.status_code": 201,
        "inferapi.request.id": "abc",
    }
    assert span.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize(
    ("status", "error", "told", "code"),
    [
        (404, None, None, StatusCode.UNSET),
        (499, None, None, StatusCode.UNSET),
        (503, None, "503", StatusCode.ERROR),
        (500, "internal_error", "internal_error", StatusCode.ERROR),
        (200, "internal_error", "internal_error", StatusCode.ERROR),
        (None, "no_answer", "no_answer", StatusCode.ERROR),
    ],
)
def test_what_is_our_fault_is_an_error_and_what_is_the_clients_is_none(heard, status, error, told, code):
    heard.tracing.begin(Arrival("_OTHER", "abc")).end(None, status, error)
    (span,) = heard.spans
    assert (span.name, span.parent) == ("HTTP", None)
    assert span.attributes.get("http.response.status_code") == status
    assert (span.attributes.get("error.type"), span.status.status_code) == (told, code)


def test_a_callers_span_that_is_not_sampled_is_not_told(heard):
    parent = type(PARENT)(PARENT.trace_id, PARENT.span_id, is_sampled=False)
    heard.tracing.begin(Arrival("POST", "abc", parent)).end("/infer", 200)
    assert heard.spans == ()


async def test_a_generation_is_a_span_below_its_request_in_whatever_task_it_runs(heard):
    _, engine = await heard.engine("Hello", " there")
    request = heard.tracing.begin(Arrival("POST", "abc"))
    await asyncio.create_task(listen(engine, heard.ask()))
    request.end("/infer", 200)
    generation, server = heard.spans
    assert generation.parent.span_id == server.context.span_id
    assert f"{generation.context.trace_id:032x}" == request.trace_id


async def test_after_a_request_nothing_is_left_of_its_span_in_the_task(heard):
    _, engine = await heard.engine("Hello")
    heard.tracing.begin(Arrival("POST", "abc")).end("/infer", 200)
    await listen(engine, heard.ask())
    assert heard.spans[-1].parent is None
    assert trace.get_current_span(context.get_current()) is trace.INVALID_SPAN


async def test_a_generation_tells_what_was_asked_and_what_came_and_no_text(heard):
    _, engine = await heard.engine(SECRET, f" {SECRET}", f" {SECRET}")
    asked = heard.ask(
        f"{SECRET} two",
        max_new_tokens=2,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        seed=7,
        stop=(SECRET * 2,),
        presence_penalty=0.25,
    )
    await listen(engine, asked)
    (span,) = heard.spans
    assert (span.name, span.kind) == ("text_completion org/name", SpanKind.CLIENT)
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "inferapi",
        "gen_ai.request.model": "org/name",
        "gen_ai.response.model": "org/name",
        "gen_ai.request.max_tokens": 2,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.top_k": 40,
        "gen_ai.request.seed": 7,
        "gen_ai.request.presence_penalty": 0.25,
        "gen_ai.request.frequency_penalty": 0.0,
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.response.time_to_first_chunk": TIMINGS.time_to_first_token_s,
        "gen_ai.usage.input_tokens": 2,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.usage.cache_read.input_tokens": 0,
        "inferapi.queue_s": TIMINGS.queue_s,
    }
    assert SECRET not in span.to_json()


async def test_messages_are_a_chat(heard):
    _, engine = await heard.engine("Hello")
    asked = GenerationRequest(Prompt(messages=(Message("user", "Hi"),)), SamplingParams(), 1000.0, 1060.0)
    await listen(engine, asked)
    assert heard.spans[0].name == "chat org/name"


async def test_a_seed_that_otlp_has_no_number_for_is_left_out(heard):
    _, engine = await heard.engine("Hello")
    await listen(engine, heard.ask(seed=2**63))
    assert "gen_ai.request.seed" not in heard.spans[0].attributes


async def test_a_generation_begins_when_its_request_arrived(heard):
    _, engine = await heard.engine("Hello")
    asked = heard.ask()
    await heard.clock.advance(2.5)  # it waited for a model
    await listen(engine, asked)
    (span,) = heard.spans
    assert span.start_time == round((heard.clock.wall_s() - 2.5) * 1e9)


async def test_metrics_have_the_times_and_tokens_of_an_answer(heard):
    _, engine = await heard.engine("Hello", " there")
    await listen(engine, heard.ask("one two three"))
    common = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "inferapi",
        "gen_ai.request.model": "org/name",
        "gen_ai.response.model": "org/name",
    }
    metrics = heard.metrics()
    tokens = metrics.pop("gen_ai.client.token.usage")
    assert sorted(tokens, key=lambda point: point[0]["gen_ai.token.type"]) == [
        (common | {"gen_ai.token.type": "input"}, 1, 3),
        (common | {"gen_ai.token.type": "output"}, 1, 2),
    ]
    assert metrics == {
        "gen_ai.server.request.duration": [(common, 1, TIMINGS.total_s)],
        "gen_ai.server.time_to_first_token": [(common, 1, TIMINGS.time_to_first_token_s)],
        "gen_ai.server.time_per_output_token": [(common, 1, TIMINGS.inter_token_latency_s)],
    }


async def test_an_answer_of_one_token_has_no_time_for_a_later_one(heard):
    _, engine = await heard.engine("Hello")
    await listen(engine, heard.ask())
    assert "gen_ai.server.time_per_output_token" not in heard.metrics()


@pytest.mark.parametrize(
    ("failure", "told"), [(OutOfMemory(), OutOfMemory.code), (ZeroDivisionError(SECRET), "ZeroDivisionError")]
)
async def test_an_answer_that_fails_is_told_by_the_kind_of_its_error_alone(heard, failure, told):
    scripted, engine = await heard.engine("Hello", " there")
    scripted.fail_with = failure
    with pytest.raises(type(failure)):
        await listen(engine, heard.ask())
    (span,) = heard.spans
    assert (span.attributes["error.type"], span.status.status_code) == (told, StatusCode.ERROR)
    assert (span.status.description, span.events) == (None, ())
    metrics = heard.metrics()
    assert [point[0]["error.type"] for point in metrics.pop("gen_ai.server.request.duration")] == [told]
    assert metrics == {}


async def test_an_answer_that_nobody_waits_for_is_cancelled_and_no_fault(heard):
    scripted, engine = await heard.engine("Hello", " there")
    async with aclosing(engine.generate(heard.ask())) as chunks:
        await anext(chunks)
    (span,) = heard.spans
    assert (span.attributes["error.type"], span.status.status_code) == ("cancelled", StatusCode.UNSET)
    assert scripted.cancelled == 1


async def test_an_answer_whose_end_was_read_is_whole_though_nobody_asked_for_more(heard):
    _, engine = await heard.engine("Hello")
    async with aclosing(engine.generate(heard.ask())) as chunks:
        chunk = await anext(chunks)
    assert chunk.finish is not None
    (span,) = heard.spans
    assert span.attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert "error.type" not in span.attributes


async def test_embeddings_are_told_with_their_tokens(heard):
    _, engine = await heard.engine()
    await engine.embed(EmbeddingRequest(("one two", "three"), 1000.0, 1060.0))
    (span,) = heard.spans
    assert (span.name, span.attributes["gen_ai.usage.input_tokens"]) == ("embeddings org/name", 3)
    ((attributes, count, total),) = heard.metrics()["gen_ai.client.token.usage"]
    assert (attributes["gen_ai.token.type"], count, total) == ("input", 1, 3)


def test_the_resource_is_this_server_unless_the_operator_names_it(monkeypatch, heard):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    named = Heard()
    for each in (heard, named):
        each.tracing.begin(Arrival("GET", "abc")).end("/status", 200)
    resources = [each.spans[0].resource.attributes for each in (heard, named)]
    assert [resource["service.name"] for resource in resources] == ["inferapi", "mine"]
    assert resources[0]["service.instance.id"] != resources[1]["service.instance.id"]


def test_nothing_is_set_for_the_whole_process(heard):
    heard.tracing.begin(Arrival("GET", "abc")).end("/status", 200)
    with trace.get_tracer("somebody").start_as_current_span("else") as span:
        assert not span.get_span_context().is_valid


class _Stuck(InMemorySpanExporter):
    """Hangs in its last words until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def shutdown(self) -> None:
        self.go.wait()


async def test_a_collector_that_hangs_does_not_hold_up_the_end(loop_time):
    stuck = _Stuck()
    tracing = OtelTracing(SimpleSpanProcessor(stuck), InMemoryMetricReader(), FakeClock())
    closing = asyncio.create_task(tracing.aclose())
    try:
        await loop_time(1.5)
        await asyncio.wait({closing})
        assert not stuck.go.is_set()
    finally:
        stuck.go.set()

"""``Tracing`` that exports: spans of requests and generations, and metrics, by OTLP over HTTP. An extra: ``otel``.

Providers are of this server alone: nothing is set for the whole process, so that a library which looks for global ones
exports nothing through it.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from contextlib import suppress
from contextvars import Token
from threading import Thread

from opentelemetry import context as contexts
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    format_trace_id,
    set_span_in_context,
)

from inferapi import __version__
from inferapi.adapters.otel_engines import TracedLauncher
from inferapi.adapters.otel_generations import GenerationTelemetry
from inferapi.domain.ports import Clock, EngineLauncher
from inferapi.domain.tracing import Arrival, RequestTrace, TraceParent, new_trace_id

log = logging.getLogger(__name__)

_LAST_WORDS_S = 1.0  # of the three that a server has beyond its drain
_FIRST_SERVER_ERROR = 500


class OtelTracing:
    """Every request is a span, and each of its generations one below it.

    Exporters work in threads of their own behind queues with an end: what a collector does not take is dropped, and
    the log says so at most once in a while.
    """

    def __init__(self, spans: SpanProcessor, metrics: MetricReader, clock: Clock) -> None:
        given = OTELResourceDetector().detect().attributes
        own = {"service.name": "inferapi", "service.version": __version__, "service.instance.id": str(uuid.uuid4())}
        resource = Resource.create({name: value for name, value in own.items() if name not in given})
        # Without handlers for the end of the process: they would wait for the collector, and nobody ends that.
        self._traces = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._traces.add_span_processor(spans)
        self._metrics = MeterProvider(metric_readers=[metrics], resource=resource, shutdown_on_exit=False)
        self._tracer = self._traces.get_tracer("inferapi", __version__)
        meter = self._metrics.get_meter("inferapi", __version__)
        self._generations = GenerationTelemetry(self._tracer, meter, clock)
        self._is_closed = False

    @classmethod
    def to(cls, endpoint: str, clock: Clock) -> OtelTracing:
        """Export to the collector at this address. Headers, certificates, timeouts and sampling are ``OTEL_…``'s.

        Raises:
            ValueError: a variable of these is no good.
        """
        # One refused batch is told once, as an error; that it will be tried again is of no use to anybody.
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)
        spans = BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces"))
        metrics = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=f"{endpoint}/v1/metrics"))
        return cls(spans, metrics, clock)

    def begin(self, arrival: Arrival) -> RequestTrace:
        """See ``Tracing``."""
        method = "HTTP" if arrival.method == "_OTHER" else arrival.method
        attributes = {"http.request.method": arrival.method, "inferapi.request.id": arrival.request_id}
        span = self._tracer.start_span(method, _parent(arrival.parent), SpanKind.SERVER, attributes)
        return _RequestSpan(span, method, arrival.parent)

    def engines(self, launcher: EngineLauncher) -> EngineLauncher:
        """See ``Tracing``."""
        return TracedLauncher(launcher, self._generations)

    async def aclose(self) -> None:
        """See ``Tracing``."""
        if self._is_closed:
            return
        self._is_closed = True
        ends = [_in_thread(self._traces.shutdown), _in_thread(self._metrics.shutdown)]
        await asyncio.wait(ends, timeout=_LAST_WORDS_S)


class _RequestSpan:
    """A ``RequestTrace``; its span is the current one until its end."""

    def __init__(self, span: Span, method: str, parent: TraceParent | None) -> None:
        context = span.get_span_context()
        untold = parent.trace_id if parent else new_trace_id()  # OTEL_SDK_DISABLED: there is no span
        self.trace_id = format_trace_id(context.trace_id) if context.is_valid else untold
        self._span = span
        self._method = method
        self._token: Token[Context] = contexts.attach(set_span_in_context(span))

    def end(self, route: str | None, status: int | None, error: str | None = None) -> None:
        """See ``RequestTrace``."""
        contexts.detach(self._token)
        span = self._span
        if route is not None:
            span.update_name(f"{self._method} {route}")
            span.set_attribute("http.route", route)
        if status is not None:
            span.set_attribute("http.response.status_code", status)
            if status >= _FIRST_SERVER_ERROR:
                error = error or str(status)
        if error is not None:
            span.set_attribute("error.type", error)
            span.set_status(StatusCode.ERROR)
        span.end()


def _parent(parent: TraceParent | None) -> Context:
    """A context that holds nothing but the caller's span: what else is in the current one is not this request's."""
    if parent is None:
        return Context()
    flags = TraceFlags(TraceFlags.SAMPLED if parent.is_sampled else TraceFlags.DEFAULT)
    span = SpanContext(int(parent.trace_id, 16), int(parent.span_id, 16), is_remote=True, trace_flags=flags)
    return set_span_in_context(NonRecordingSpan(span), Context())


def _in_thread(work: Callable[[], object]) -> asyncio.Future[None]:
    """The end of some work that may hang, in a thread that nobody has to wait for."""
    event_loop = asyncio.get_running_loop()
    ended = event_loop.create_future()

    def run() -> None:
        try:
            work()
        except Exception:
            log.exception("what was not exported yet is lost")
        with suppress(RuntimeError):  # the event loop is closed: nobody waited that long
            event_loop.call_soon_threadsafe(_settle, ended)

    Thread(target=run, name="last export", daemon=True).start()
    return ended


def _settle(ended: asyncio.Future[None]) -> None:
    if not ended.done():
        ended.set_result(None)

"""Metrics for Prometheus: what was heard, and the page of ``/metrics``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from inferapi.adapters.model_labels import ModelLabels
from inferapi.adapters.weighted_histogram import WeightedHistogram
from inferapi.domain.errors import HistoryNotSaved, SessionStoreUnavailable, SessionUnreadable
from inferapi.domain.generation import FinishReason
from inferapi.domain.states import ModelStatus
from inferapi.domain.telemetry import LoadOutcome, StepTally, UnloadReason, rejection_codes

_WAIT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_GAP_S = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 10.0)
_LOAD_S = (0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
_CREATED = "_created"
_STORE_ERRORS = (SessionStoreUnavailable, SessionUnreadable, HistoryNotSaved)


@dataclass(frozen=True, slots=True)
class _OfModel:
    """The series of one model that a step may change, looked up once."""

    label: str
    prompt_tokens: Counter
    generation_tokens: Counter
    cached_tokens: Counter
    time_to_first_token_s: Histogram
    queue_s: Histogram


class PrometheusMetrics:
    """``Metrics`` in Prometheus's text format.

    A step of an engine costs a handful of additions, however many requests it served. Gauges are read where they are
    known, when the page is asked for: so they cannot drift from what is true.

    Args:
        models: names that the operator gave, which are labels from the start.
    """

    media_type: ClassVar[str] = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, models: Iterable[str] = ()) -> None:
        names = tuple(models)
        self._labels = ModelLabels(names)
        self._series: dict[str, _OfModel] = {}
        self._registry = registry = CollectorRegistry()

        def counter(name: str, documentation: str, *labels: str) -> Counter:
            return Counter(f"inferapi_{name}", documentation, labels, registry=registry)

        def histogram(name: str, documentation: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"inferapi_{name}_seconds", documentation, ("model",), buckets=buckets, registry=registry)

        self._prompt_tokens = counter(
            "prompt_tokens_total", "Tokens of prompts, once the first token of the answer is there.", "model"
        )
        self._generation_tokens = counter("generation_tokens_total", "Tokens of answers.", "model")
        self._cached_tokens = counter(
            "prefix_cache_hit_tokens_total", "Tokens of prompts that needed no computing.", "model"
        )
        self._time_to_first_token_s = histogram("time_to_first_token", "From arrival to the first token.", _WAIT_S)
        self._gap_s = WeightedHistogram(
            "inferapi_inter_token_latency_seconds", "From one token of an answer to the next.", "model", _GAP_S
        )
        registry.register(self._gap_s)
        self._e2e_s = histogram("e2e_request_latency", "From arrival to the end of a finished request.", _WAIT_S)
        self._queue_s = histogram("request_queue_time", "From arrival to a place in the batch.", _WAIT_S)
        self._finished = counter(
            "requests_finished_total", "Requests that ended by themselves, or failed.", "model", "finish_reason"
        )
        self._aborted = counter("requests_aborted_total", "Requests whose client left before their end.", "model")
        self._rejected = counter("requests_rejected_total", "Requests that were answered with an error.", "reason")
        self._load_s = histogram("model_load", "From the wish for a model to the model in memory.", _LOAD_S)
        self._loads = counter("model_loads_total", "Loads that ended.", "outcome")
        self._unloads = counter("model_unloads_total", "Models that left memory.", "reason")
        self._store_errors = counter("session_store_errors_total", "Session store operations that failed.", "kind")
        self._show_zeros(names)

    # What is heard

    def engine_stepped(self, model: str, tally: StepTally) -> None:
        """See ``Telemetry``."""
        series = self._of(model)
        if tally.generation_tokens:
            series.generation_tokens.inc(tally.generation_tokens)
        for gap_s, times in tally.gaps:
            self._gap_s.observe(series.label, gap_s, times)
        if tally.prompt_tokens:
            series.prompt_tokens.inc(tally.prompt_tokens)
        if tally.cached_tokens:
            series.cached_tokens.inc(tally.cached_tokens)
        for first in tally.firsts:
            series.time_to_first_token_s.observe(first.time_to_first_token_s)
            series.queue_s.observe(first.queue_s)

    def request_finished(self, model: str, finish_reason: str, total_s: float) -> None:
        """See ``Telemetry``."""
        label = self._of(model).label
        self._finished.labels(label, finish_reason).inc()
        self._e2e_s.labels(label).observe(total_s)

    def request_failed(self, model: str, code: str) -> None:
        """See ``Telemetry``."""
        self._finished.labels(self._of(model).label, code).inc()

    def request_aborted(self, model: str) -> None:
        """See ``Telemetry``."""
        self._aborted.labels(self._labels.of(model)).inc()

    def request_rejected(self, code: str) -> None:
        """See ``Telemetry``."""
        self._rejected.labels(code).inc()

    def load_ended(self, model: str, outcome: LoadOutcome, duration_s: float) -> None:
        """See ``Telemetry``."""
        self._loads.labels(outcome.value).inc()
        if outcome in {LoadOutcome.LOADED, LoadOutcome.RESTORED}:
            self._load_s.labels(self._of(model).label).observe(duration_s)

    def model_unloaded(self, model: str, reason: UnloadReason) -> None:
        """See ``Telemetry``."""
        del model
        self._unloads.labels(reason.value).inc()

    def session_store_failed(self, code: str) -> None:
        """See ``Telemetry``."""
        self._store_errors.labels(code).inc()

    # What is told

    def page(self, models: Sequence[ModelStatus]) -> bytes:
        """See ``Metrics``."""
        return generate_latest(_Page(self._registry, self._gauges(models)))

    def _gauges(self, models: Sequence[ModelStatus]) -> list[Metric]:
        """How busy models are. Several lines may have one label: one model loaded twice, or models without a label."""
        running: dict[str, int] = defaultdict(int)
        waiting: dict[str, int] = defaultdict(int)
        memory_bytes: dict[str, int] = defaultdict(int)
        usage_ratio: dict[str, float] = {}
        for line in models:
            label = self._labels.of(line.name) if line.facts is None else self._of(line.name).label
            running[label] += line.in_flight
            waiting[label] += line.queued
            if line.facts is not None and line.load is not None:
                memory_bytes[label] += max(line.facts.memory_bytes, line.load.memory_bytes)
                usage_ratio[label] = max(line.load.kv_cache_usage_ratio, usage_ratio.get(label, 0.0))
        return [
            _gauge("num_requests_running", "Requests that a model works on.", running),
            _gauge("num_requests_waiting", "Requests that wait for a model, or for a place in its batch.", waiting),
            _gauge("kv_cache_usage_ratio", "Reserved part of the KV cache, 0 to 1.", usage_ratio),
            _gauge("model_memory_bytes", "Memory that a model takes.", memory_bytes),
        ]

    def _of(self, model: str) -> _OfModel:
        """The series of a model that is or was in memory."""
        label = self._labels.admit(model)
        series = self._series.get(label)
        if series is None:
            self._gap_s.add(label)
            series = self._series[label] = _OfModel(
                label,
                self._prompt_tokens.labels(label),
                self._generation_tokens.labels(label),
                self._cached_tokens.labels(label),
                self._time_to_first_token_s.labels(label),
                self._queue_s.labels(label),
            )
            self._e2e_s.labels(label)
            self._aborted.labels(label)
            for reason in FinishReason:
                self._finished.labels(label, reason.value)
        return series

    def _show_zeros(self, models: Iterable[str]) -> None:
        """A series that is not there before its first event hides that event from ``rate``."""
        for model in models:
            self._of(model)
        for code in sorted(rejection_codes()):
            self._rejected.labels(code)
        for outcome in LoadOutcome:
            self._loads.labels(outcome.value)
        for reason in UnloadReason:
            self._unloads.labels(reason.value)
        for error in _STORE_ERRORS:
            self._store_errors.labels(error.code)


class _Page(Collector):
    """Gauges, then what the registry has, without the time at which each series began: it says nothing to anybody."""

    def __init__(self, registry: CollectorRegistry, gauges: Sequence[Metric]) -> None:
        self._registry = registry
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        """See ``Collector``."""
        yield from self._gauges
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith(_CREATED)]
            yield family


def _gauge(name: str, documentation: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"inferapi_{name}", documentation, labels=["model"])
    for label, value in values.items():
        family.add_metric([label], value)
    return family

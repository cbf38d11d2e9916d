"""What was heard, on a page that Prometheus can read."""

from __future__ import annotations

import pytest

from fakes import make_facts
from inferapi.adapters.model_labels import MOST_LABELS, OTHER
from inferapi.adapters.prometheus_metrics import PrometheusMetrics
from inferapi.domain.errors import HistoryNotSaved, ModelCrashed, leaves
from inferapi.domain.model import EngineLoad
from inferapi.domain.states import ModelState, ModelStatus
from inferapi.domain.telemetry import (
    FirstToken,
    LoadOutcome,
    SilentMetrics,
    StepTally,
    UnloadReason,
    counts_as_rejected,
)
from metrics_contract import MetricsContract, hear_everything
from metrics_page import MetricsPage

PROMISED = {
    "num_requests_running": "gauge",
    "num_requests_waiting": "gauge",
    "kv_cache_usage_ratio": "gauge",
    "prompt_tokens_total": "counter",
    "generation_tokens_total": "counter",
    "prefix_cache_hit_tokens_total": "counter",
    "time_to_first_token_seconds": "histogram",
    "inter_token_latency_seconds": "histogram",
    "e2e_request_latency_seconds": "histogram",
    "request_queue_time_seconds": "histogram",
    "requests_finished_total": "counter",
    "requests_rejected_total": "counter",
    "requests_aborted_total": "counter",
    "model_load_seconds": "histogram",
    "model_loads_total": "counter",
    "model_unloads_total": "counter",
    "model_memory_bytes": "gauge",
    "session_store_errors_total": "counter",
}


@pytest.fixture
def metrics() -> PrometheusMetrics:
    return PrometheusMetrics()


def read(metrics: PrometheusMetrics, *lines: ModelStatus) -> MetricsPage:
    return MetricsPage(metrics.page(lines))


def resident(name: str = "gpt2", **changes) -> ModelStatus:
    facts = make_facts(name, memory_bytes=100)
    return ModelStatus(name, ModelState.READY, **{"facts": facts, "load": EngineLoad(), **changes})


def test_the_page_has_the_promised_names_and_no_others(metrics):
    assert read(metrics, resident()).types == PROMISED


def test_two_of_them_share_nothing(metrics):
    metrics.request_rejected("queue_full")
    assert read(PrometheusMetrics()).counted("requests_rejected_total", "reason") == {}
    assert read(metrics).counted("requests_rejected_total", "reason") == {"queue_full": 1.0}


def test_a_tally_counts_tokens_and_times(metrics):
    firsts = (FirstToken(0.25, 0.5), FirstToken(0.0, 2.0))
    metrics.engine_stepped("gpt2", StepTally(100, 64, 3, firsts, ((0.012, 2), (0.5, 1))))
    metrics.engine_stepped("gpt2", StepTally(generation_tokens=2, gaps=((0.012, 2),)))
    page = read(metrics)
    tokens = ("prompt_tokens_total", "prefix_cache_hit_tokens_total", "generation_tokens_total")
    assert [page.value(name, model="gpt2") for name in tokens] == [100.0, 64.0, 5.0]
    sums = {
        name: (page.value(f"{name}_seconds_count", model="gpt2"), page.value(f"{name}_seconds_sum", model="gpt2"))
        for name in ("time_to_first_token", "request_queue_time", "inter_token_latency")
    }
    assert sums == {
        "time_to_first_token": (2.0, 2.5),
        "request_queue_time": (2.0, 0.25),
        "inter_token_latency": (5.0, pytest.approx(0.548)),
    }


def test_a_gap_is_in_the_bucket_of_its_bound_and_in_all_above(metrics):
    metrics.engine_stepped("gpt2", StepTally(generation_tokens=6, gaps=((0.05, 3), (0.0501, 2), (99.0, 1))))
    page = read(metrics)
    counts = {
        bound: page.value("inter_token_latency_seconds_bucket", model="gpt2", le=bound)
        for bound in ("0.04", "0.05", "0.075", "10.0", "+Inf")
    }
    assert counts == {"0.04": 0.0, "0.05": 3.0, "0.075": 5.0, "10.0": 5.0, "+Inf": 6.0}


def test_requests_are_counted_by_how_they_end(metrics):
    metrics.request_finished("gpt2", "stop", 1.5)
    metrics.request_finished("gpt2", "length", 2.5)
    metrics.request_failed("gpt2", "model_crashed")
    metrics.request_aborted("gpt2")
    page = read(metrics)
    assert page.counted("requests_finished_total", "finish_reason") == {
        "stop": 1.0,
        "length": 1.0,
        "model_crashed": 1.0,
    }
    assert page.value("requests_aborted_total", model="gpt2") == 1.0
    assert page.value("e2e_request_latency_seconds_count", model="gpt2") == 2.0
    assert page.value("e2e_request_latency_seconds_sum", model="gpt2") == 4.0


def test_loads_and_unloads_are_counted_and_only_loads_that_came_about_are_timed(metrics):
    for outcome in LoadOutcome:
        metrics.load_ended("gpt2", outcome, 3.0)
    for reason in UnloadReason:
        metrics.model_unloaded("gpt2", reason)
    page = read(metrics)
    assert page.counted("model_loads_total", "outcome") == {outcome.value: 1.0 for outcome in LoadOutcome}
    assert page.counted("model_unloads_total", "reason") == {reason.value: 1.0 for reason in UnloadReason}
    assert page.value("model_load_seconds_count", model="gpt2") == 2.0


def test_gauges_say_what_the_status_says_and_forget_it(metrics):
    busy = resident(in_flight=3, queued=2, load=EngineLoad(3, 2, 0.75, memory_bytes=150))
    page = read(metrics, busy)
    gauges = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_ratio", "model_memory_bytes")
    assert [page.value(name, model="gpt2") for name in gauges] == [3.0, 2.0, 0.75, 150.0]
    page = read(metrics, resident())
    assert [page.value(name, model="gpt2") for name in gauges] == [0.0, 0.0, 0.0, 100.0]
    page = read(metrics)
    assert [page.sum(name) for name in gauges] == [0.0] * 4


def test_two_lines_of_one_name_are_one_series(metrics):
    leaving = resident(in_flight=1, load=EngineLoad(1, 0, 0.25))
    coming = ModelStatus("gpt2", ModelState.LOADING, queued=2)
    page = read(metrics, leaving, coming)
    assert page.value("num_requests_running", model="gpt2") == 1.0
    assert page.value("num_requests_waiting", model="gpt2") == 2.0


def test_names_that_clients_choose_are_no_labels(metrics):
    lines = [ModelStatus(f"made-up-{number}", ModelState.RESOLVING, queued=1) for number in range(3)]
    metrics.request_aborted("made-up-4")
    metrics.load_ended("made-up-5", LoadOutcome.FAILED, 1.0)
    metrics.model_unloaded("made-up-6", UnloadReason.ASKED)
    page = read(metrics, *lines)
    assert page.label_values("model") == {OTHER}
    assert page.value("num_requests_waiting", model=OTHER) == 3.0
    assert page.value("requests_aborted_total", model=OTHER) == 1.0


def test_there_are_so_many_labels_at_most_and_the_rest_is_counted_together(metrics):
    for number in range(MOST_LABELS + 5):
        metrics.request_finished(f"org/model-{number}", "stop", 1.0)
    page = read(metrics)
    assert len(page.label_values("model")) == MOST_LABELS + 1
    assert page.value("requests_finished_total", model="org/model-0", finish_reason="stop") == 1.0
    assert page.value("requests_finished_total", model=OTHER, finish_reason="stop") == 5.0


def test_what_can_be_known_from_the_start_is_there_at_zero():
    page = read(PrometheusMetrics(["org/named"]))
    assert page.value("requests_finished_total", model="org/named", finish_reason="stop") == 0.0
    assert page.value("generation_tokens_total", model="org/named") == 0.0
    assert page.value("inter_token_latency_seconds_count", model="org/named") == 0.0
    assert page.label_values("outcome") == set(LoadOutcome)
    assert page.label_values("kind") == {"session_store_unavailable", "session_unreadable", "history_not_saved"}
    codes = {leaf.code for leaf in leaves()} - {"history_not_saved"} | {"not_found", "method_not_allowed"}
    assert page.label_values("reason") == codes | {reason.value for reason in UnloadReason}


def test_what_was_counted_as_failed_and_what_had_been_finished_are_not_rejected_too():
    told = ModelCrashed(model="gpt2")
    assert counts_as_rejected(told)
    told.is_counted = True
    assert not counts_as_rejected(told)
    assert counts_as_rejected(told.again())
    assert not counts_as_rejected(HistoryNotSaved(problem="the lease was lost"))


class TestPrometheusMetrics(MetricsContract):
    """Of the fixture above."""


class TestSilentMetrics(MetricsContract):
    @pytest.fixture
    def metrics(self):
        return SilentMetrics()

    def test_it_keeps_nothing(self, metrics):
        hear_everything(metrics, "gpt2")
        assert metrics.page([resident()]) == b""

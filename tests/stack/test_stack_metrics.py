"""Metrics in a real Prometheus: read with a key that can do nothing else, and asked by the dashboard's questions."""

import json

import pytest
from live_server import TINY, until
from prometheus import Prometheus

from compose_file import REPOSITORY

DASHBOARD = json.loads((REPOSITORY / "deploy" / "grafana" / "inferapi.json").read_text(encoding="utf-8"))
# What Grafana puts there: all models, and a few times the interval between two readings.
FILLED_IN = {"$model": ".*", "$__rate_interval": "1m"}
EXPRESSIONS = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


def filled_in(expression):
    for name, value in FILLED_IN.items():
        expression = expression.replace(name, value)
    return expression


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory, secrets, server):
    """One that has read the server before and after requests of all ends."""
    running = Prometheus(tmp_path_factory.mktemp("prometheus"), secrets, server.url.removeprefix("http://"))
    try:
        until(lambda: running.series("up == 1"))
        counted = until(lambda: running.series("sum(inferapi_requests_finished_total)"))
        prompt = {"text": "Once upon a time", "max_new_tokens": 20, "ignore_eos": True}
        for _ in range(3):
            server.answer("/infer", prompt)
        assert server.post("/infer", {"text": 5}).status_code == 422
        server.answer("/unload_model", {})
        server.answer("/load_model", {"model_name": TINY})
        until(lambda: running.series("sum(inferapi_requests_finished_total)")[0][1] == counted[0][1] + 3)
        until(lambda: running.series('inferapi_requests_rejected_total{reason="invalid_request"} > 0'))
        until(lambda: running.series("sum(increase(inferapi_model_loads_total[1m])) > 0"))
        yield running
    finally:
        running.stop()


def test_the_server_is_read_with_a_key_of_its_own(prometheus):
    (target,) = prometheus.get("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS)
def test_every_question_of_the_dashboard_has_an_answer(prometheus, title, expression):
    assert prometheus.series(filled_in(expression)), title


def test_the_models_to_choose_from_are_those_that_were_loaded(prometheus):
    assert prometheus.get("label/model/values", **{"match[]": "inferapi_generation_tokens_total"}) == [TINY]


def test_tokens_are_counted_as_they_were_made(prometheus, server):
    expression = "sum(inferapi_generation_tokens_total)"
    ((_, before),) = prometheus.series(expression)
    server.answer("/infer", {"text": "Hi", "max_new_tokens": 7, "ignore_eos": True})
    until(lambda: prometheus.series(expression)[0][1] == before + 7)


def test_the_key_of_prometheus_reads_metrics_and_nothing_of_sessions(server, secrets):
    bearer = {"Authorization": "Bearer " + (secrets / "metrics_key").read_text(encoding="utf-8")}
    assert server.http.get("/metrics", headers=bearer).status_code == 200
    refused = server.http.get("/sessions", headers=bearer)
    assert (refused.status_code, refused.json()["code"]) == (403, "insufficient_scope")

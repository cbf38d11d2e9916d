"""Logs and traces of a real server: what a collector gets, and what becomes of the server when it gets nothing."""

import json
import socket
import subprocess
import sys

import pytest
from collector import Collector
from live_server import COMMAND, PATIENCE_S, TINY, until

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CANARY, SESSION, KEY = "c4nary-in-a-prompt", "s3ss10n-0f-s0meb0dy", "k3y-of-ann-0123456789"
QUICK = {"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_METRIC_EXPORT_INTERVAL": "200"}
KEYS = json.dumps([{"id": "ann", "key": KEY, "scopes": ["infer", "admin"]}])


@pytest.fixture
def collector():
    with Collector() as started:
        yield started


@pytest.fixture
def traced(fresh_server, collector):
    """A server that exports to ``collector``."""
    env = {"MODEL": TINY, "OTEL_ENDPOINT": collector.url, "API_KEYS": KEYS, "environment": QUICK}
    return fresh_server(**env).wait_ready()


def chat(server):
    headers = {"Authorization": f"Bearer {KEY}", "traceparent": f"00-{TRACE}-{SPAN}-01", "X-Request-ID": "mine"}
    body = {"text": CANARY, "session_id": SESSION, "max_new_tokens": 4}
    response = server.post("/chat", body, headers=headers)
    assert response.status_code == 200, response.text
    response = server.http.get(f"/sessions/{SESSION}", headers=headers)
    assert response.status_code == 200, response.text


def lines(server):
    return [json.loads(line) for line in server.log.read_text(encoding="utf-8").splitlines() if line.startswith("{")]


def test_a_collector_gets_the_spans_of_a_request_in_its_callers_trace_and_the_metrics(traced, collector):
    chat(traced)
    until(lambda: {"POST /chat", f"chat {TINY}", "GET /sessions/{session_id}"} <= {s.name for s in collector.spans()})
    spans = {span.name: span for span in collector.spans()}
    request, generation = spans["POST /chat"], spans[f"chat {TINY}"]
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, SPAN)
    assert (generation.trace_id.hex(), generation.parent_span_id) == (TRACE, request.span_id)
    told = {attribute.key: attribute.value for attribute in generation.attributes}
    assert told["gen_ai.usage.output_tokens"].int_value in range(1, 5)
    assert not any(name.startswith("GET /health") for name in spans)
    names = {"gen_ai.server.request.duration", "gen_ai.server.time_to_first_token", "gen_ai.client.token.usage"}
    until(lambda: names <= collector.metric_names())


def test_the_log_has_the_trace_and_neither_it_nor_the_collector_what_a_client_wrote(traced, collector):
    chat(traced)
    until(lambda: any(span.name == "GET /sessions/{session_id}" for span in collector.spans()))
    told = [line for line in lines(traced) if line.get("request_id") == "mine"]
    routes = [line["route"] for line in told if line["logger"] == "inferapi.access"]
    assert routes == ["/chat", "/sessions/{session_id}"]
    assert {line["trace_id"] for line in told} == {TRACE}
    everything = traced.log.read_bytes() + b"".join(body for _, body in collector.bodies)
    assert [secret for secret in (CANARY, SESSION, KEY) if secret.encode() in everything] == []


def test_the_last_spans_are_exported_when_the_server_ends(fresh_server, collector):
    server = fresh_server(MODEL=TINY, OTEL_ENDPOINT=collector.url, environment={"OTEL_BSP_SCHEDULE_DELAY": "600000"})
    server.wait_ready().result(max_new_tokens=2)
    assert collector.spans() == []
    server.process.terminate()
    server.process.wait(PATIENCE_S)
    assert {"POST /infer", f"text_completion {TINY}"} <= {span.name for span in collector.spans()}


def test_the_standard_variable_is_enough(fresh_server, collector):
    environment = QUICK | {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    fresh_server(MODEL=TINY, environment=environment).wait_ready().result(max_new_tokens=2)
    until(lambda: any(span.name == "POST /infer" for span in collector.spans()))


@pytest.mark.parametrize("kind", ["refuses", "hangs"])
def test_a_collector_that_takes_nothing_harms_nobody(fresh_server, kind):
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        if kind == "hangs":
            deaf.listen(64)  # connections are made, and nobody ever reads
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        server = fresh_server(MODEL=TINY, OTEL_ENDPOINT=url, environment=QUICK).wait_ready()
        answers = {server.result(max_new_tokens=4) for _ in range(20)}
        assert len(answers) == 1
        server.process.terminate()
        server.process.wait(PATIENCE_S)
        assert "Traceback" not in server.log.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("command", "environment"),
    [
        ([COMMAND, "serve", "--workers", "2"], {}),
        ([COMMAND, "serve"], {"WEB_CONCURRENCY": "2"}),
        ([sys.executable, "-m", "uvicorn", "--factory", "inferapi.main:create", "--port", "0", "--workers", "2"], {}),
        (
            [sys.executable, "-m", "uvicorn", "--factory", "inferapi.main:create", "--port", "0"],
            {"WEB_CONCURRENCY": "2"},
        ),
    ],
)
def test_several_processes_are_refused_at_the_start_and_told_why(monkeypatch, command, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert "inferapi serves from one process" in ended.stderr
    assert "Traceback" not in ended.stderr

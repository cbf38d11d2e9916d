from __future__ import annotations

import io
import json
import logging

import pytest

from inferapi.logs import JsonFormatter

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "s3ss10n-0f-s0meb0dy"


@pytest.fixture
def lines(root_logger):
    """What was logged since the last look: an object a line."""
    handler = logging.StreamHandler(io.StringIO())
    handler.setFormatter(JsonFormatter())
    root_logger.addHandler(handler)
    root_logger.setLevel(logging.DEBUG)

    def read():
        written = handler.setStream(io.StringIO()).getvalue()
        return [json.loads(line) for line in written.splitlines()]

    return read


@pytest.fixture
def access_lines(lines):
    """Those of the access log, without their times."""

    def read():
        told = [line for line in lines() if line["logger"] == "inferapi.access"]
        for line in told:
            assert isinstance(line.pop("duration_ms"), int)
            line["message"] = line["message"].rpartition(" in ")[0]
        return told

    return read


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("GET", f"/sessions/{SECRET}", "/sessions/{session_id}"),
        ("DELETE", f"/sessions/{SECRET}", "/sessions/{session_id}"),
        ("PUT", f"/sessions/{SECRET}", "/sessions/{session_id}"),  # there is no such method
        ("GET", f"/sessions/{SECRET}/export?name={SECRET}", "/sessions/{session_id}/export"),
        ("GET", f"/v1/responses/{SECRET}", "/v1/responses/{response_id}"),
        ("GET", f"/{SECRET}", "(no route)"),
        ("GET", f"/sessions/{SECRET}/{SECRET}", "(no route)"),
        ("GET", "/status", "/status"),
    ],
)
async def test_a_line_names_the_route_by_its_template_and_never_the_path(client, access_lines, method, path, route):
    response = await client.request(method, path)
    (line,) = access_lines()
    assert line["message"] == f"{method} {route!r} {response.status_code}"
    assert (line["method"], line["route"], line["status"]) == (method, route, response.status_code)
    assert SECRET not in json.dumps(line)


async def test_a_request_that_is_turned_away_at_the_door_has_its_routes_name(client, access_lines):
    text = {"Content-Type": "text/plain"}
    await client.post("/infer", content=b"Hi", headers=text)
    await client.post(f"/sessions/{SECRET}/fork", content=b"Hi", headers=text)
    told = access_lines()
    assert [(line["route"], line["status"]) for line in told] == [("/infer", 415), ("(no route)", 415)]
    assert SECRET not in json.dumps(told)


async def test_a_method_that_nobody_knows_is_not_repeated(client, access_lines):
    await client.request("BREW", "/infer")
    (line,) = access_lines()
    assert (line["method"], line["route"], line["status"]) == ("_OTHER", "/infer", 405)


async def test_each_line_of_a_request_has_its_id_and_the_trace_it_came_with(stage, client, lines):
    await stage.load()
    lines()
    stage.engine.fail_with = RuntimeError("it broke")
    headers = {"X-Request-ID": "mine", "traceparent": f"00-{TRACE}-{SPAN}-01"}
    response = await client.post("/infer", json={"text": "Hi"}, headers=headers)
    assert response.status_code == 500
    told = [line for line in lines() if line["logger"].startswith("inferapi")]
    assert {line["message"].partition(" in ")[0] for line in told} >= {"unexpected error", "POST '/infer' 500"}
    assert {(line["request_id"], line["trace_id"]) for line in told} == {("mine", TRACE)}


@pytest.mark.parametrize("header", [None, "", f"00-{TRACE}-{SPAN}", f"00-{'0' * 32}-{SPAN}-01", "x" * 600])
async def test_without_a_good_traceparent_each_request_has_a_new_trace(client, access_lines, header):
    for _ in range(2):
        await client.get("/status", headers={} if header is None else {"traceparent": header})
    one, other = (line["trace_id"] for line in access_lines())
    assert one != other
    assert (len(one), int(one, 16) > 0) == (32, True)
    assert TRACE not in (one, other)


async def test_two_traceparents_are_none(client, access_lines):
    header = ("traceparent", f"00-{TRACE}-{SPAN}-01")
    await client.get("/status", headers=[header, header])
    assert access_lines()[0]["trace_id"] != TRACE


async def test_what_is_begun_for_a_request_and_outlives_it_has_no_request_in_its_lines(client, lines):
    headers = {"X-Request-ID": "mine"}
    assert (await client.post("/load_model", json={"model_name": "gpt2"}, headers=headers)).status_code == 200
    told = [line for line in lines() if line["logger"] == "inferapi.application.journal"]
    ended = [line for line in told if "loaded" in line["message"]]
    assert ended
    assert [line for line in ended if "request_id" in line or "trace_id" in line] == []


async def test_probes_are_told_at_debug_alone(client, access_lines):
    await client.get("/health/live")
    await client.get("/status")
    assert [(line["route"], line["level"]) for line in access_lines()] == [
        ("/health/live", "debug"),
        ("/status", "info"),
    ]

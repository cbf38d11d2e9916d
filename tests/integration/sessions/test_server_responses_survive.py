"""Stored responses outlive their server, on either store that lasts."""

import os
import signal

import pytest
from live_server import TINY, until

pytestmark = pytest.mark.model

ASK = {"model": TINY, "max_output_tokens": 8, "temperature": 0}


@pytest.fixture(params=["sqlite", "redis"])
def start(request, fresh_server, tmp_path):
    """Starts a server on a store that lasts."""
    url = f"sqlite:///{tmp_path}/sessions.db"
    if request.param == "redis":
        url = request.getfixturevalue("redis_server").url

    def start():
        return fresh_server(MODEL=TINY, SESSION_STORE_URL=url).wait_ready()

    return start


def kill(server):
    tree = server.tree()
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    until(lambda: not any(process.is_running() and process.status() != "zombie" for process in tree))


def test_responses_survive_a_server_that_is_killed(start):
    first = start()
    kept = first.answer("/v1/responses", {**ASK, "input": "One?", "metadata": {"a": "b"}})
    later = first.answer("/v1/responses", {**ASK, "input": "Two?", "previous_response_id": kept["id"]})
    gone = first.answer("/v1/responses", {**ASK, "input": "Three?"})
    assert first.http.delete(f"/v1/responses/{gone['id']}").status_code == 200
    kill(first)
    second = start()
    assert second.http.get(f"/v1/responses/{kept['id']}").json() == kept
    assert second.http.get(f"/v1/responses/{later['id']}").json() == later
    assert second.http.get(f"/v1/responses/{gone['id']}").status_code == 404
    branches = [
        second.answer("/v1/responses", {**ASK, "input": "Two?", "previous_response_id": kept["id"]}) for _ in range(2)
    ]
    assert [branch["usage"]["input_tokens"] for branch in branches] == [later["usage"]["input_tokens"]] * 2
    texts = [branch["output"][0]["content"][0]["text"] for branch in branches]
    assert texts == [later["output"][0]["content"][0]["text"]] * 2

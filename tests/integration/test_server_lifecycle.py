"""The process tree over time: idle unload, crashes, signals; what dies takes nobody along and leaves nothing."""

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from live_server import DEMO, PATIENCE_S, TINY, has_ended, text_of, until

pytestmark = pytest.mark.model

MIB = 1024**2
ENDED_IN_ORDER = {0, -signal.SIGTERM}  # 143 to a shell: the signal raised again when all was done
LONG = {"text": "Once upon a time", "max_new_tokens": 4000, "ignore_eos": True}


@pytest.mark.usefixtures("and_back")
def test_an_idle_model_is_unloaded_its_memory_comes_back_and_the_next_request_loads_it_again(server):
    server.answer("/unload_model", {})
    assert server.workers() == []
    before_bytes = server.own_bytes()
    server.answer("/load_model", {"model_name": DEMO})
    said = server.result(max_new_tokens=8, ignore_eos=True)
    (worker,) = server.workers()
    assert server.own_bytes() - before_bytes > server.model_line()["weights_bytes"]

    server.answer("/change_inactivity_threshold", {"new_threshold": 1})
    until(lambda: server.status()["state"] == "unloaded")  # asking does not keep it awake
    assert has_ended(worker)
    assert server.workers() == []
    assert server.status()["current_model"] == DEMO
    assert [line["state"] for line in server.status()["models"]] == ["unloaded"]
    assert abs(server.own_bytes() - before_bytes) < 60 * MIB
    assert server.http.get("/health/ready").status_code == 200
    assert server.workers() == []  # neither status nor health woke it

    server.answer("/change_inactivity_threshold", {"new_threshold": 300})
    assert server.result(max_new_tokens=8, ignore_eos=True) == said
    assert len(server.workers()) == 1


@pytest.mark.usefixtures("and_back")
def test_an_answer_longer_than_the_threshold_is_not_interrupted(server):
    worker = server.worker_id()
    body = {"text": "Once upon a time", "ignore_eos": True, "details": True}
    pace_s = server.answer("/infer", body | {"max_new_tokens": 16})["details"]["timings"]["inter_token_latency_s"]
    tokens = min(round(3 / pace_s) + 1, 8000)
    server.answer("/change_inactivity_threshold", {"new_threshold": 1})
    details = server.answer("/infer", body | {"max_new_tokens": tokens})["details"]
    server.answer("/change_inactivity_threshold", {"new_threshold": -1})
    assert details["timings"]["total_s"] > 1
    assert details["usage"]["completion_tokens"] == tokens
    assert server.worker_id() == worker


@pytest.mark.usefixtures("and_back")
async def test_a_worker_killed_while_it_answers_is_told_to_its_clients_and_the_next_request_works(server):
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as client:
        whole = asyncio.create_task(client.post("/infer", json=LONG))
        turn = asyncio.create_task(client.post("/chat", json=LONG | {"session_id": "crashed"}))
        with server.stream(**LONG) as received:
            next(received)
            await asyncio.to_thread(server.wait_busy, 3)
            worker = server.kill_worker()
            events = list(received)
        for answer in (await whole, await turn):
            assert (answer.status_code, answer.json()["code"]) == (503, "model_crashed")
            assert int(answer.headers["retry-after"]) >= 1
    assert events[-1]["error"]["code"] == "model_crashed"
    assert "[DONE]" not in events
    assert has_ended(worker)
    assert server.result(max_new_tokens=4, ignore_eos=True)
    assert server.worker_id() != worker.pid
    again = server.answer("/chat", {"text": "Hi", "session_id": "crashed", "max_new_tokens": 1})
    assert len(again["full_history"]) == 3


@pytest.mark.usefixtures("and_back")
def test_a_worker_killed_while_idle_is_replaced_by_the_next_request(server):
    said = server.result(max_new_tokens=8, ignore_eos=True)
    worker = server.kill_worker()
    until(lambda: has_ended(worker))
    until(lambda: server.status()["state"] == "unloaded")
    assert server.result(max_new_tokens=8, ignore_eos=True) == said
    assert server.worker_id() != worker.pid


@pytest.mark.usefixtures("and_back")
def test_a_killed_fork_server_is_replaced_by_the_next_request(server):
    said = server.result(max_new_tokens=8, ignore_eos=True)
    tree = server.tree()
    os.kill(psutil.Process(server.process.pid).children()[0].pid, signal.SIGKILL)
    until(lambda: all(has_ended(process) for process in tree))
    assert server.http.get("/health/live").status_code == 200
    until(lambda: server.status()["state"] == "unloaded")
    assert server.result(max_new_tokens=8, ignore_eos=True) == said


def test_the_api_process_never_maps_torch_and_the_worker_does(server):
    def maps(pid):
        return Path(f"/proc/{pid}/maps").read_text(encoding="utf-8")

    assert "libtorch" not in maps(server.process.pid)
    assert "libtorch" in maps(server.worker_id())


def test_a_killed_api_process_leaves_no_child_behind(fresh_server):
    server = fresh_server(MODEL=TINY).wait_ready()
    tree = server.tree()
    assert len(tree) == 2
    with server.stream(text="Hi", max_new_tokens=4000, ignore_eos=True) as received:
        next(received)
        os.kill(server.process.pid, signal.SIGKILL)
        assert server.process.wait(PATIENCE_S) == -signal.SIGKILL
        until(lambda: all(has_ended(process) for process in tree))
        with pytest.raises(httpx.TransportError):
            list(received)


def test_readiness_waits_for_the_preload_and_a_stop_lets_the_running_stream_finish(fresh_server):
    server = fresh_server()
    seen, live = [], []

    def ready():
        assert server.process.poll() is None
        try:
            seen.append(server.http.get("/health/ready"))
            live.append(server.http.get("/health/live").status_code)
        except httpx.TransportError:
            return False
        return seen[-1].status_code == 200

    until(ready)
    assert seen[0].status_code == 503
    assert seen[0].json() == {"status": "loading"}
    assert int(seen[0].headers["retry-after"]) >= 1
    assert {answer.status_code for answer in seen[:-1]} == {503}
    assert set(live) == {200}
    assert server.status()["state"] == "ready"

    tree = server.tree()
    with server.stream(max_new_tokens=80, ignore_eos=True, details=True) as received:
        first = next(received)
        for process in (*tree, server.process):  # as supervisors do: to every process there is
            process.terminate()
        with httpx.Client(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as probe:
            until(lambda: probe.get("/health/ready").json() == {"status": "draining"})
            assert probe.get("/health/ready").status_code == 503
            refused = probe.post("/infer", json={"text": "Hi"})
        *deltas, reply, done = [first, *received]
    assert (refused.status_code, refused.json()["code"]) == (503, "shutting_down")
    assert int(refused.headers["retry-after"]) >= 1
    assert done == "[DONE]"
    assert reply["result"] == text_of(deltas)
    assert reply["details"]["usage"]["completion_tokens"] == 80
    assert server.process.wait(PATIENCE_S) in ENDED_IN_ORDER
    assert all(has_ended(process) for process in tree)
    with pytest.raises(httpx.TransportError):
        server.http.get("/health/live")


def test_a_stop_ends_an_idle_server_and_its_children_even_while_they_start(fresh_server):
    server = fresh_server(MODEL="").wait_ready()
    assert server.status()["state"] == "unloaded"
    tree = server.tree()
    assert len(tree) == 1  # the fork server, still importing
    server.process.terminate()
    assert server.process.wait(PATIENCE_S) in ENDED_IN_ORDER
    assert all(has_ended(process) for process in tree)


def test_a_server_open_to_all_refuses_to_start_without_leave():
    kept = {name: value for name, value in os.environ.items() if not name.startswith("INFERAPI_")}
    command = [Path(sys.executable).with_name("inferapi"), "serve", "--port", "1"]
    refused = subprocess.run(
        command, env=kept | {"INFERAPI_HOST": "0.0.0.0"}, capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert refused.returncode == 2
    assert b"INFERAPI_ALLOW_ANONYMOUS" in refused.stderr

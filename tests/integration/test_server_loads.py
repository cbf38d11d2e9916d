"""Loads over HTTP: joined, watched, left, cancelled, on demand, and what the journal says of them."""

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from live_server import DEMO, PATIENCE_S, TINY, events, has_ended, text_of, until

pytestmark = pytest.mark.model

MIB = 1024**2
STAGES = ["queued", "resolving", "downloading", "admitting", "loading", "warming", "ready"]
LONG = {"text": "Once upon a time", "max_new_tokens": 4000, "ignore_eos": True}
CYCLES = 30
ALLOWED_GROWTH_BYTES = 20 * 10**6


def watch(server, path="/load_model", **body):
    """A load whose progress is streamed."""
    return server.http.stream("POST", path, json=body, headers={"Accept": "text/event-stream"})


def journal(server, **params):
    return server.http.get("/events", params=params).json()["events"]


def stages_of(received):
    """The stages in their order, each once."""
    stages = [event["stage"] for event in received if isinstance(event, dict) and "stage" in event]
    return [stage for index, stage in enumerate(stages) if index == 0 or stages[index - 1] != stage]


@pytest.fixture
def empty_server(server):
    """The shared server without a model; with the demo model again afterwards."""
    server.answer("/unload_model", {})
    yield server
    server.answer("/change_inactivity_threshold", {"new_threshold": 300})
    server.answer("/load_model", {"model_name": DEMO})


def test_ten_loads_at_once_make_one_worker_and_ten_answers(empty_server):
    seen = journal(empty_server)[-1]["id"]
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda _: empty_server.post("/load_model", {"model_name": DEMO}), range(10)))
    assert {(a.status_code, a.json()["status"]) for a in answers} == {(200, f"Model {DEMO} loaded successfully")}
    assert [event["event"] for event in journal(empty_server, after=seen)] == ["load_started", "loaded"]
    assert len(empty_server.workers()) == 1


def test_a_load_streams_its_stages_and_bytes_and_ends_with_the_answer(empty_server):
    with watch(empty_server, model_name=DEMO) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        received = list(events(response.iter_lines()))
    assert received[-2:] == [{"status": f"Model {DEMO} loaded successfully"}, "[DONE]"]
    stages = stages_of(received)
    assert [stage for stage in STAGES if stage in stages] == stages
    assert {"loading", "warming"} <= set(stages)
    reading = [event for event in received[:-2] if event["stage"] == "loading" and event["total_bytes"]]
    assert [event["done_bytes"] for event in reading] == sorted(event["done_bytes"] for event in reading)
    assert all(event["done_bytes"] <= event["total_bytes"] for event in reading)
    assert all(event["elapsed_s"] >= 0 and event["model"] == DEMO for event in received[:-2])


def test_who_joins_a_load_sees_the_same_progress_and_who_leaves_only_leaves(empty_server):
    seen = journal(empty_server)[-1]["id"]
    with watch(empty_server, model_name=DEMO) as first:
        next(events(first.iter_lines()))
        with watch(empty_server, model_name=DEMO) as second:
            lines = events(second.iter_lines())
            first.close()  # it asked first, and leaves first
            received = list(lines)
    assert received[-1] == "[DONE]"
    assert stages_of(received)[-1] in STAGES
    assert [event["event"] for event in journal(empty_server, after=seen)] == ["load_started", "loaded"]
    assert empty_server.status()["state"] == "ready"


def test_a_load_that_fails_says_so_in_the_stream_and_without_done(empty_server):
    with watch(empty_server, model_name="tiny/misfit") as response:
        received = list(events(response.iter_lines()))
    assert received[-1]["error"]["code"] == "model_invalid"
    assert "[DONE]" not in received


def test_a_load_is_cancelled_by_an_unload_of_its_model_and_can_be_asked_for_again(empty_server):
    with watch(empty_server, model_name=DEMO) as response:
        lines = events(response.iter_lines())
        assert any(event["stage"] == "loading" for event in lines)
        answer = empty_server.answer("/unload_model", {"model_name": DEMO})
        received = list(lines)
    assert answer == {"status": f"Loading of model {DEMO} cancelled"}
    assert received[-1]["error"]["code"] == "load_cancelled"
    assert "[DONE]" not in received
    assert (empty_server.workers(), empty_server.status()["models"]) == ([], [])
    assert journal(empty_server)[-1]["event"] == "load_cancelled"
    assert empty_server.answer("/load_model", {"model_name": DEMO})


def test_a_cancelled_change_brings_the_old_model_back(empty_server):
    empty_server.answer("/load_model", {"model_name": TINY})
    with watch(empty_server, "/change_model", new_model_name=DEMO) as response:
        lines = events(response.iter_lines())
        assert any(event["stage"] == "loading" for event in lines)
        empty_server.answer("/unload_model", {"model_name": DEMO})
        error = list(lines)[-1]["error"]
    assert error["code"] == "load_cancelled"
    assert error["detail"].endswith(f"Model {TINY} is serving again.")
    assert empty_server.status()["current_model"] == TINY
    assert empty_server.result(max_new_tokens=2)


def test_a_stream_that_runs_during_a_change_ends_whole_on_the_old_model(empty_server):
    empty_server.answer("/load_model", {"model_name": DEMO})
    body = {"max_new_tokens": 48, "ignore_eos": True, "details": True}
    alone = empty_server.answer("/infer", {"text": "Once upon a time", **body})
    with empty_server.stream(**body) as received, ThreadPoolExecutor(1) as pool:
        first = next(received)
        change = pool.submit(empty_server.answer, "/change_model", {"new_model_name": TINY})
        rest = list(received)
        assert change.result()["status"].startswith(f"Changed to model {TINY} successfully (")
    assert rest[-1] == "[DONE]"
    assert text_of([first, *rest]) == rest[-2]["result"] == alone["result"]
    assert rest[-2]["details"]["model"] == DEMO
    assert (
        empty_server.answer("/infer", {"text": "Hi", "max_new_tokens": 2, "details": True})["details"]["model"] == TINY
    )


def test_a_request_that_names_a_model_loads_it_beside_the_current_one(fresh_server):
    server = fresh_server(MAX_RESIDENT_MODELS=2).wait_ready()
    named = server.answer("/infer", {"text": "Hi", "max_new_tokens": 2, "details": True, "model": TINY})
    unnamed = server.answer("/chat", {"text": "Hi", "max_new_tokens": 2, "details": True})
    assert (named["details"]["model"], unnamed["details"]["model"]) == (TINY, DEMO)
    assert {line["name"]: line["state"] for line in server.status()["models"]} == {DEMO: "ready", TINY: "ready"}
    assert server.status()["current_model"] == DEMO
    assert len(server.workers()) == 2


def test_with_one_place_models_that_requests_name_take_turns_and_a_dry_run_tells_who_would_go(fresh_server):
    server = fresh_server().wait_ready()
    told = server.answer("/load_model", {"model_name": TINY, "dry_run": True})
    assert (told["fits"], told["would_evict"]) == (True, [DEMO])
    assert told["needed_bytes"] > 0
    for name in (TINY, DEMO, TINY):
        answer = server.answer("/infer", {"text": "Hi", "max_new_tokens": 2, "details": True, "model": name})
        assert answer["details"]["model"] == name
        assert len(server.workers()) == 1
    reasons = [event["reason"] for event in journal(server) if event["event"] == "unloaded"]
    assert reasons == [f"made room for {name}" for name in (TINY, DEMO, TINY)]


def test_a_pinned_model_makes_room_for_nobody_and_does_not_idle_out(fresh_server):
    server = fresh_server(MODEL=TINY, PINNED_MODELS=f'["{TINY}"]', INACTIVITY_THRESHOLD_S=1).wait_ready()
    refused = server.post("/load_model", {"model_name": DEMO})
    assert (refused.status_code, refused.json()["code"]) == (503, "insufficient_memory")
    line = server.model_line()
    assert (line["pinned"], line["unloads_in_s"], line["state"]) == (True, None, "ready")
    assert server.answer("/change_model", {"new_model_name": DEMO})  # by name it goes


@pytest.mark.parametrize("path", ["/events?limit=0", "/events?limit=x", "/events?after=-1", "/events?model="])
def test_the_journal_refuses_what_it_does_not_understand(server, path):
    assert server.http.get(path).status_code == 422


def test_a_worker_killed_while_it_loads_is_told_and_the_load_can_be_asked_for_again(empty_server):
    with watch(empty_server, model_name=DEMO) as response:
        lines = events(response.iter_lines())
        assert any(event["stage"] == "loading" for event in lines)
        worker = until(lambda: next(iter(empty_server.workers()), None))
        os.kill(worker.pid, signal.SIGKILL)
        assert list(lines)[-1]["error"]["code"] == "model_crashed"
    assert has_ended(worker)
    assert empty_server.answer("/load_model", {"model_name": DEMO})


def test_a_worker_that_hangs_is_replaced(fresh_server):
    server = fresh_server(WORKER_HEARTBEAT_TIMEOUT_S=2, MAX_NEW_TOKENS=32000).wait_ready()
    (hanging,) = server.workers()
    with server.stream(**LONG) as received:
        next(received)
        hanging.suspend()
        assert list(received)[-1]["error"]["code"] == "model_crashed"
    assert server.result(max_new_tokens=2)
    assert has_ended(hanging)
    assert [event["event"] for event in journal(server)][-3:] == ["crashed", "load_started", "loaded"]


def test_out_of_memory_in_a_load_is_told_and_the_old_model_is_back(fresh_server):
    server = fresh_server(MODEL=TINY, HF_HUB_OFFLINE=1).wait_ready()
    (fork_server,) = psutil.Process(server.process.pid).children()
    (worker,) = server.workers()
    limit = worker.memory_info().vms + 40 * MIB  # enough for the tiny model again, not for the demo model
    fork_server.rlimit(psutil.RLIMIT_AS, (limit, limit))
    failed = server.post("/change_model", {"new_model_name": DEMO})
    assert (failed.status_code, failed.json()["code"]) == (503, "insufficient_memory")
    assert failed.json()["detail"].endswith(f"Model {TINY} is serving again.")
    assert server.status()["current_model"] == TINY
    assert server.result(max_new_tokens=2)


def test_out_of_memory_in_a_generation_is_told_and_the_next_request_works(fresh_server, monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # else a step finds room in the holes that the load has left
    server = fresh_server().wait_ready()
    (worker,) = server.workers()
    free, hard = worker.rlimit(psutil.RLIMIT_AS)
    worker.rlimit(psutil.RLIMIT_AS, (worker.memory_info().vms + MIB, hard))
    failed = server.post("/infer", {"text": "word " * 4000, "max_new_tokens": 2})
    assert (failed.status_code, failed.json()["code"]) in {(503, "insufficient_memory"), (503, "model_crashed")}
    with suppress(psutil.NoSuchProcess):  # it may have been replaced
        worker.rlimit(psutil.RLIMIT_AS, (free, hard))
    assert server.result(max_new_tokens=2)
    assert server.http.get("/health/ready").status_code == 200


def test_memory_descriptors_and_threads_come_back_over_thirty_cycles(fresh_server):
    server = fresh_server().wait_ready()
    server.answer("/unload_model", {})
    left_bytes, counts, threads = [], [], []
    for _ in range(CYCLES):
        server.answer("/load_model", {"model_name": DEMO})
        server.result(max_new_tokens=2)
        held_bytes = server.model_line()["memory_bytes"]
        server.answer("/unload_model", {})
        receipt = journal(server, limit=1)[0]
        assert (receipt["event"], receipt["model"]) == ("unloaded", DEMO)
        assert receipt["returned_bytes"] >= held_bytes // 2 > 0
        assert receipt["duration_s"] >= 0
        left_bytes.append(server.own_bytes())
        tree = [psutil.Process(server.process.pid), *server.tree()]
        counts.append((len(tree), sum(p.num_fds() for p in tree)))
        threads.append(sum(p.num_threads() for p in tree))
    assert max(left_bytes) - left_bytes[0] < ALLOWED_GROWTH_BYTES
    assert len(set(counts[1:])) == 1
    assert max(threads) - min(threads) <= 1  # asyncio keeps one more for files where two reads once met


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait_for_the_streams(fresh_server, sign):
    server = fresh_server(DRAIN_TIMEOUT_S=600, MAX_NEW_TOKENS=32000).wait_ready()
    tree = server.tree()
    with server.stream(**LONG | {"max_new_tokens": 8000}) as received:
        next(received)
        server.process.send_signal(sign)
        until(lambda: server.http.get("/health/ready").json()["status"] == "draining")
        server.process.send_signal(sign)
        assert server.process.wait(20) in {-sign, 128 + sign, 0}  # not the drain deadline of ten minutes
    until(lambda: all(has_ended(process) for process in tree))


def test_the_drain_deadline_ends_a_stream_with_an_error_and_leaves_no_child(fresh_server):
    server = fresh_server(DRAIN_TIMEOUT_S=1, MAX_NEW_TOKENS=32000).wait_ready()
    tree = server.tree()
    with server.stream(**LONG | {"max_new_tokens": 8000}) as received:
        next(received)
        server.process.send_signal(signal.SIGTERM)
        late = until(lambda: server.http.get("/health/ready").status_code == 503 and server.post("/infer", LONG))
        assert (late.status_code, late.json()["code"]) == (503, "shutting_down")
        rest = list(received)
    assert rest[-1]["error"]["code"] == "generation_aborted"
    assert server.process.wait(20) in {0, -signal.SIGTERM}
    until(lambda: all(has_ended(process) for process in tree))


def inferapi(*arguments):
    command = [Path(sys.executable).with_name("inferapi"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_the_command_line_shows_a_load_and_says_how_it_ended(empty_server):
    loaded = inferapi("load", DEMO, "--url", empty_server.url)
    assert (loaded.returncode, loaded.stdout) == (0, f"Model {DEMO} loaded successfully\n")
    assert "loading (" in loaded.stderr
    changed = inferapi("load", TINY, "--change", "--json", "--url", empty_server.url)
    lines = [json.loads(line) for line in changed.stdout.splitlines()]
    assert (changed.returncode, "stage" in lines[0]) == (0, True)
    assert lines[-1]["status"].startswith(f"Changed to model {TINY}")
    refused = inferapi("load", "../etc", "--url", empty_server.url)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "A model name is a hub id" in refused.stderr
    nobody = inferapi("load", DEMO, "--url", "http://127.0.0.1:9")
    assert nobody.returncode == 3
    assert "No inferapi server answers" in nobody.stderr

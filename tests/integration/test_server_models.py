"""Loading, changing and unloading over real HTTP: what succeeds, what is refused, and what serves afterwards."""

import pytest
from live_server import DEMO, TINY

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("and_back")]

STORED_PARAMETERS = 134_515_008  # of the demo model, in bfloat16 or float32 when loaded
BREAKDOWN = {"needed_bytes", "weights_bytes", "kv_cache_bytes", "working_bytes", "overhead_bytes"}


def refusal(response, status, code):
    """The problem of a response, which must be this one."""
    problem = response.json()
    assert (response.status_code, problem["code"]) == (status, code), response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail", "instance", "code"} <= set(problem)
    return problem


def serves_as_before(server, worker_id):
    """The same process still answers for the demo model."""
    status = server.status()
    assert (status["state"], status["current_model"]) == ("ready", DEMO)
    assert [line["name"] for line in status["models"]] == [DEMO]
    assert server.worker_id() == worker_id
    assert server.result(max_new_tokens=2, ignore_eos=True)


def test_the_model_changes_while_the_server_runs_and_changes_back(server):
    said = server.result(max_new_tokens=8, ignore_eos=True)
    answer = server.answer("/change_model", {"new_model_name": TINY})
    line = server.model_line()
    assert answer == {"status": f"Changed to model {TINY} successfully ({line['weights_bytes'] / 1e9:.2f} GB)"}
    assert [line["name"] for line in server.status()["models"]] == [TINY]
    assert len(server.workers()) == 1
    assert server.answer("/infer", {"text": "Hi", "max_new_tokens": 1, "details": True})["details"]["model"] == TINY

    back = server.answer("/change_model", {"new_model_name": DEMO})
    width = {"bfloat16": 2, "float32": 4}[server.model_line()["dtype"]]
    assert back == {"status": f"Changed to model {DEMO} successfully ({STORED_PARAMETERS * width / 1e9:.2f} GB)"}
    assert server.result(max_new_tokens=8, ignore_eos=True) == said


def test_loading_another_model_makes_it_current_and_the_old_one_makes_room(server):
    assert server.answer("/load_model", {"model_name": TINY}) == {"status": f"Model {TINY} loaded successfully"}
    assert server.status()["current_model"] == TINY
    assert [line["name"] for line in server.status()["models"]] == [TINY]


def test_a_session_goes_on_with_another_model(server):
    first = server.answer("/chat", {"text": "Hello", "max_new_tokens": 4})
    server.answer("/change_model", {"new_model_name": TINY})
    body = {"text": "And now?", "session_id": first["session_id"], "max_new_tokens": 4}
    assert server.answer("/chat", body)["full_history"][:3] == first["full_history"]


@pytest.mark.parametrize("endpoint", ["load_model", "change_model"])
@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("nobody/ever-made-this", 404, "model_not_found"),
        ("gpt2", 403, "model_not_allowed"),
        ("tiny/broken", 422, "model_invalid"),
        ("tiny/own-code", 422, "remote_code_refused"),
        ("tiny/pickled", 422, "unsafe_weights"),
    ],
)
def test_a_model_that_is_refused_never_harms_the_one_that_serves(server, endpoint, name, status, code):
    before = server.worker_id()
    field = "model_name" if endpoint == "load_model" else "new_model_name"
    detail = refusal(server.post(f"/{endpoint}", {field: name}), status, code)["detail"]
    assert name in detail
    serves_as_before(server, before)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "/etc/nothing-here", "http://h/x", "a\\b", "a/b/c"]
)
def test_a_name_that_is_a_path_or_a_url_is_refused_alike_whether_it_exists_or_not(server, name):
    before = server.worker_id()
    problem = refusal(server.post("/load_model", {"model_name": name}), 422, "invalid_request")
    refused = refusal(server.post("/load_model", {"model_name": "no//thing"}), 422, "invalid_request")
    assert problem | {"instance": ""} == refused | {"instance": ""}
    serves_as_before(server, before)


def test_a_change_that_fails_while_loading_brings_the_old_model_back_and_says_so(server):
    said = server.result(max_new_tokens=8, ignore_eos=True)
    problem = refusal(server.post("/change_model", {"new_model_name": "tiny/misfit"}), 422, "model_invalid")
    assert "tiny/misfit" in problem["detail"]
    assert f"Model {DEMO} is serving again." in problem["detail"]
    assert "/" not in problem["detail"].replace(DEMO, "").replace("tiny/misfit", "")  # no path of the server
    serves_as_before(server, server.worker_id())
    assert server.result(max_new_tokens=8, ignore_eos=True) == said


def test_a_dry_run_tells_what_a_model_would_need_and_loads_nothing(server):
    before = server.worker_id()
    report = server.answer("/load_model", {"model_name": TINY, "dry_run": True})
    assert (report["model"], report["device"], report["fits"], report["can_ever_fit"]) == (TINY, "cpu", True, True)
    assert set(report) > BREAKDOWN
    parts = report["weights_bytes"] + report["kv_cache_bytes"] + report["working_bytes"] + report["overhead_bytes"]
    assert report["needed_bytes"] == parts
    serves_as_before(server, before)


def test_an_unloaded_model_stays_away_until_it_is_loaded_again(server):
    assert server.answer("/unload_model", {}) == {"status": f"Model {DEMO} unloaded successfully"}
    assert server.workers() == []
    assert (server.status()["state"], server.status()["current_model"], server.status()["models"]) == (
        "unloaded",
        None,
        [],
    )
    refusal(server.post("/infer", {"text": "Hi"}), 409, "model_not_loaded")
    refusal(server.post("/chat", {"text": "Hi"}), 409, "model_not_loaded")
    refusal(server.post("/change_model", {"new_model_name": TINY}), 409, "model_not_loaded")
    refusal(server.post("/unload_model", {}), 409, "model_not_loaded")
    assert server.http.get("/health/ready").status_code == 200

    server.answer("/load_model", {"model_name": DEMO})
    assert server.answer("/unload_model", {"model_name": DEMO}) == {"status": f"Model {DEMO} unloaded successfully"}
    server.answer("/load_model", {"model_name": DEMO})
    assert server.result(max_new_tokens=2, ignore_eos=True)


def test_a_budget_below_need_refuses_before_weights_are_read_and_a_deadline_frees_its_slot(server, fresh_server):
    def least_bytes(name):  # with the smallest cache that is worth loading
        report = server.answer("/load_model", {"model_name": name, "dry_run": True})
        cache = report["kv_cache_bytes"] * 2048 // report["kv_cache_tokens"]
        return report["needed_bytes"] - report["kv_cache_bytes"] + cache

    budget_bytes = (least_bytes(TINY) + least_bytes(DEMO)) // 2
    small = fresh_server(
        MODEL=TINY, MEMORY_BUDGET_BYTES=budget_bytes, REQUEST_TIMEOUT_S=2, MAX_NEW_TOKENS=32000
    ).wait_ready()
    before = small.worker_id()
    for path, body in (("/load_model", {"model_name": DEMO}), ("/change_model", {"new_model_name": DEMO})):
        problem = refusal(small.post(path, body), 422, "model_too_large")
        assert {name for name in BREAKDOWN if problem[name] > 0} == BREAKDOWN
        assert problem["needed_bytes"] > budget_bytes
        assert all(str(problem[name]) in problem["detail"] for name in BREAKDOWN)
    assert [worker.pid for worker in small.workers()] == [before]
    assert small.status()["current_model"] == TINY
    assert f"loaded {DEMO}" not in small.log.read_text(encoding="utf-8")

    endless = {"text": "Hi", "max_new_tokens": 30000, "ignore_eos": True}
    response = small.post("/infer", endless)
    assert refusal(response, 504, "generation_timeout")["timeout_s"] == 2
    assert response.headers["x-should-retry"] == "false"
    with small.stream(**endless) as received:
        events = list(received)
    assert events[0].keys() == {"delta"}
    assert events[-1]["error"]["code"] == "generation_timeout"
    assert "[DONE]" not in events
    small.wait_idle()
    assert small.result(max_new_tokens=2, ignore_eos=True) is not None
    assert small.worker_id() == before

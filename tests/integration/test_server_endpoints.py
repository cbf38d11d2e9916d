"""The six endpoints and those around them, over real HTTP with a real model: bodies exact to the key."""

import re

import pytest
from live_server import DEMO, text_of

pytestmark = pytest.mark.model

STATUS_LINE = {
    "pinned",
    "progress",
    "peak_memory_bytes",
    *("name", "state", "in_flight", "queued", "last_used", "unloads_in_s", "device", "dtype", "attention"),
    *("attention_reason", "batching", "batching_reason", "context_window_tokens", "kv_cache_tokens"),
    *("weights_bytes", "memory_bytes", "load_s", "quantization", "kernels", "kernels_reason"),
    *("tool_format", "reasoning_tags", "reasons_from_start", "embeds", "embedding_dimensions"),
}


def test_loading_the_current_model_answers_at_once_and_reloads_nothing(server):
    before = server.worker_id()
    assert server.answer("/load_model", {"model_name": DEMO}) == {"status": f"Model {DEMO} loaded successfully"}
    assert server.worker_id() == before


def test_infer_answers_its_input_and_the_continuation_alone(server):
    text = "The quick brown fox jumps over the"
    answer = server.answer("/infer", {"text": text, "max_new_tokens": 8})
    assert set(answer) == {"input", "result"}
    assert answer["input"] == text
    assert answer["result"].strip()
    assert not answer["result"].startswith(text)


def test_infer_takes_every_field_of_the_manual(server):
    body = {"text": "Hello, how are you?", "max_new_tokens": 6, "temperature": 0.7, "repetition_penalty": 1.1}
    answer = server.answer("/infer", body | {"session_id": "12345"})
    assert set(answer) == {"input", "result"}


def test_infer_in_the_chat_template_answers_instead_of_continuing(server):
    assert "Paris" in server.result("What is the capital of France?", chat=True, max_new_tokens=24)


def test_the_capital_of_france_is_paris(server):
    answer = server.answer("/chat", {"text": "What is the capital of France?", "session_id": "abc123"})
    assert set(answer) == {"session_id", "result", "full_history"}
    assert answer["session_id"] == "abc123"
    assert "Paris" in answer["result"]
    assert answer["full_history"] == [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": answer["result"]},
    ]


def test_a_session_remembers_and_its_history_alternates(server):
    body = {"max_new_tokens": 16, "details": True}
    first = server.answer("/chat", body | {"text": "Remember this: my name is Bob."})
    second = server.answer("/chat", body | {"text": "What is my name?", "session_id": first["session_id"]})
    stranger = server.answer("/chat", body | {"text": "What is my name?"})
    assert "Bob" in second["result"]
    assert "Bob" not in stranger["result"]
    roles = [message["role"] for message in second["full_history"]]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    assert second["full_history"][:3] == first["full_history"]
    seen, seen_before = second["details"]["usage"]["prompt_tokens"], first["details"]["usage"]["total_tokens"]
    assert seen > seen_before > stranger["details"]["usage"]["prompt_tokens"]


def test_a_chat_without_a_session_id_starts_one_that_nobody_can_guess(server):
    ids = {server.answer("/chat", {"text": "Hi", "max_new_tokens": 1})["session_id"] for _ in range(3)}
    assert len(ids) == 3
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22,128}", session_id) for session_id in ids)


def test_a_system_prompt_is_for_new_sessions_only(server):
    old = server.answer("/chat", {"text": "Hi", "max_new_tokens": 1})
    answer = server.answer("/system_prompt", {"prompt": "You are a knowledgeable tutor."})
    try:
        assert answer == {"message": "System prompt updated (will affect new sessions only)"}
        new = server.answer("/chat", {"text": "Hi", "max_new_tokens": 1})
        body = {"text": "Hi again", "session_id": old["session_id"], "max_new_tokens": 1}
        old = server.answer("/chat", body)
    finally:
        server.answer("/system_prompt", {"prompt": "You are a helpful assistant."})
    assert new["full_history"][0] == {"role": "system", "content": "You are a knowledgeable tutor."}
    assert old["full_history"][0] == {"role": "system", "content": "You are a helpful assistant."}


@pytest.mark.parametrize("seconds", [120, -1, 300])
def test_the_inactivity_threshold_is_told_and_shown(server, seconds):
    answer = server.answer("/change_inactivity_threshold", {"new_threshold": seconds})
    assert answer == {"status": f"Inactivity threshold changed to {seconds} seconds"}
    assert server.status()["inactivity_threshold_s"] == seconds
    assert (server.model_line()["unloads_in_s"] is None) == (seconds == -1)


def test_status_tells_what_is_loaded_and_how_full_memory_is(server):
    server.result(max_new_tokens=1)
    server.wait_idle()
    status = server.status()
    assert set(status) == {"state", "current_model", "models", "memory", "inactivity_threshold_s"}
    assert (status["state"], status["current_model"]) == ("ready", DEMO)
    (line,) = status["models"]
    assert set(line) == STATUS_LINE
    assert (line["name"], line["state"], line["device"], line["batching"]) == (DEMO, "ready", "cpu", "continuous")
    assert line["context_window_tokens"] == 8192
    assert 0 < line["unloads_in_s"] <= status["inactivity_threshold_s"]
    assert line["memory_bytes"] > line["weights_bytes"] > 200e6
    memory = status["memory"]
    assert set(memory) == {"total_bytes", "used_bytes", "free_bytes"}
    assert memory["used_bytes"] + memory["free_bytes"] == memory["total_bytes"]


def test_health_tells_live_and_ready(client):
    assert client.get("/health/live").json() == {"status": "live"}
    assert client.get("/health/ready").json() == {"status": "ready"}


def test_details_count_tokens_and_say_how_it_ended(server):
    answer = server.answer(
        "/infer", {"text": "One two three", "max_new_tokens": 5, "ignore_eos": True, "details": True}
    )
    assert set(answer) == {"input", "result", "details"}
    details = answer["details"]
    assert set(details) == {"finish_reason", "usage", "timings", "model"}
    assert (details["finish_reason"], details["model"]) == ("length", DEMO)
    counts = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8, "dropped_turns": 0, "cached_tokens": 0}
    assert details["usage"] == counts
    assert set(details["timings"]) == {"queue_s", "time_to_first_token_s", "inter_token_latency_s", "total_s"}
    assert details["timings"]["queue_s"] <= details["timings"]["time_to_first_token_s"] <= details["timings"]["total_s"]


def test_the_models_own_end_of_an_answer_is_a_stop(server):
    answer = server.answer("/chat", {"text": "What is the capital of France?", "details": True})
    assert set(answer) == {"session_id", "result", "full_history", "details"}
    assert answer["details"]["finish_reason"] == "stop"
    assert answer["details"]["usage"]["completion_tokens"] < 512


@pytest.mark.parametrize("as_list", [True, False])
def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(server, as_list):
    whole = server.result(max_new_tokens=24, ignore_eos=True)
    stop = whole[20:24]
    body = {"text": "Once upon a time", "max_new_tokens": 24, "ignore_eos": True, "details": True}
    answer = server.answer("/infer", body | {"stop": [stop, "never said"] if as_list else stop})
    assert answer["result"] == whole[: whole.index(stop)]
    assert answer["details"]["finish_reason"] == "stop"


def test_a_seed_repeats_a_sampled_answer(server):
    body = {"max_new_tokens": 16, "temperature": 1.0, "ignore_eos": True}
    first, second, other = [server.result(**body, seed=seed) for seed in (7, 7, 8)]
    assert first == second != other


def test_a_greedy_stream_says_what_the_whole_answer_says(server):
    body = {"max_new_tokens": 24, "ignore_eos": True}
    with server.stream(**body) as received:
        streamed = text_of(received)
    assert streamed == server.result(**body)


def test_every_answer_has_a_request_id_and_keeps_a_decent_one(client):
    given = client.get("/health/live", headers={"X-Request-ID": "trace-1.a_b"}).headers["x-request-id"]
    assert given == "trace-1.a_b"
    for odd in ("a b", "x" * 129, '"quoted"'):
        made = client.get("/health/live", headers={"X-Request-ID": odd}).headers["x-request-id"]
        assert re.fullmatch(r"[0-9a-f]{32}", made)


def test_the_manual_is_served_and_names_the_six_endpoints(client):
    assert client.get("/docs").status_code == 200
    paths = set(client.get("/openapi.json").json()["paths"])
    native = {"/load_model", "/change_model", "/infer", "/chat", "/system_prompt", "/change_inactivity_threshold"}
    assert native <= paths

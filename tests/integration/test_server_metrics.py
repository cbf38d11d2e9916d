"""``GET /metrics`` of a real server: what twenty known requests and a few that broke off add up to, exactly."""

import threading

import pytest
from live_server import DEMO, until

from metrics_page import MetricsPage

pytestmark = pytest.mark.model


def read(server) -> MetricsPage:
    answer = server.http.get("/metrics")
    assert answer.status_code == 200, answer.text
    return MetricsPage(answer.text)


class Since:
    """What was counted since it was made: the server is shared."""

    def __init__(self, server) -> None:
        self._server = server
        self._before = read(server)

    def __call__(self, name: str, **labels: str) -> float:
        return read(self._server).sum(name, **labels) - self._before.sum(name, **labels)


@pytest.fixture
def since(server):
    server.wait_idle()
    return Since(server)


def known_requests(server) -> list[dict]:
    """Twenty, four at a time, natively and under ``/v1``, streamed and whole: usage and timings as clients are told."""
    told: list[dict] = []

    def ask(first: int) -> None:
        for number in range(first, 20, 4):
            tokens = 1 + number % 5
            text = f"Story number {number}: once upon a time"
            if number % 2:
                native = {"text": text, "max_new_tokens": tokens, "ignore_eos": True, "details": True}
                if number % 3:
                    told.append(server.answer("/infer", native)["details"])
                else:
                    with server.stream(**native) as received:
                        told.append(list(received)[-2]["details"])
            else:
                body = {"model": DEMO, "prompt": text, "max_tokens": tokens, "temperature": 0}
                told.append({"usage": server.answer("/v1/completions", body)["usage"]})

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 20
    return told


def test_twenty_known_requests_add_up(server, since):
    told = known_requests(server)
    usages = [details["usage"] for details in told]
    prompt_tokens = sum(usage["prompt_tokens"] for usage in usages)
    generated = sum(usage["completion_tokens"] for usage in usages)
    assert since("prompt_tokens_total", model=DEMO) == prompt_tokens
    assert since("generation_tokens_total", model=DEMO) == generated
    assert since("requests_finished_total", model=DEMO) == 20
    assert since("requests_aborted_total") == since("requests_rejected_total") == 0
    counts = {
        name: since(f"{name}_seconds_count", model=DEMO)
        for name in ("time_to_first_token", "request_queue_time", "e2e_request_latency", "inter_token_latency")
    }
    assert counts == {
        "time_to_first_token": 20,
        "request_queue_time": 20,
        "e2e_request_latency": 20,
        "inter_token_latency": generated - 20,
    }


def test_times_are_those_that_the_client_is_told(server, since):
    timings = server.answer(
        "/infer", {"text": "Once upon a time", "max_new_tokens": 8, "ignore_eos": True, "details": True}
    )["details"]["timings"]
    sums = {
        "queue_s": since("request_queue_time_seconds_sum", model=DEMO),
        "time_to_first_token_s": since("time_to_first_token_seconds_sum", model=DEMO),
        "total_s": since("e2e_request_latency_seconds_sum", model=DEMO),
        "inter_token_latency_s": since("inter_token_latency_seconds_sum", model=DEMO) / 7,
    }
    assert sums == {name: pytest.approx(timings[name], abs=1e-3) for name in sums}


def test_a_prompt_that_was_computed_before_hits_the_cache(server, since):
    body = {"text": "A tale of the sea, " * 40, "max_new_tokens": 1, "details": True}
    server.answer("/infer", body)
    between = Since(server)
    usage = server.answer("/infer", body)["details"]["usage"]
    assert between("prefix_cache_hit_tokens_total", model=DEMO) == usage["cached_tokens"] > 0
    assert between("prompt_tokens_total", model=DEMO) == usage["prompt_tokens"]


def test_answers_that_nobody_waits_for_are_aborted_and_their_tokens_count(server, since):
    for _ in range(3):
        with server.stream(max_new_tokens=4000, ignore_eos=True) as received:
            for _ in range(3):
                next(received)
    server.wait_idle()
    assert since("requests_aborted_total", model=DEMO) == 3
    assert since("requests_finished_total") == 0
    assert since("time_to_first_token_seconds_count", model=DEMO) == 3
    assert since("generation_tokens_total", model=DEMO) >= 9

    def tokens() -> tuple[float, float]:
        page = read(server)
        told = page.sum("generation_tokens_total"), page.sum("inter_token_latency_seconds_count")
        return told[0], told[1] + page.sum("time_to_first_token_seconds_count")

    generated, accounted = tokens()
    assert generated == accounted


def test_gauges_are_busy_while_a_request_runs_and_return_to_zero(server):
    server.wait_idle()
    with server.stream(max_new_tokens=4000, ignore_eos=True) as received:
        next(received)
        page = read(server)
        assert page.value("num_requests_running", model=DEMO) == 1.0
        assert 0.0 < page.value("kv_cache_usage_ratio", model=DEMO) <= 1.0
    gauges = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_ratio")
    until(lambda: [read(server).sum(name) for name in gauges] == [0.0] * 3)
    assert read(server).value("model_memory_bytes", model=DEMO) > 50_000_000


def test_a_queue_that_is_full_is_counted(narrow_server):
    since = Since(narrow_server)
    body = {"text": "Once upon a time", "max_new_tokens": 20, "ignore_eos": True}
    codes: list[int] = []
    threads = [
        threading.Thread(target=lambda: codes.append(narrow_server.post("/infer", body).status_code)) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(codes) <= {200, 503}
    assert since("requests_finished_total", finish_reason="length") == codes.count(200)
    assert since("requests_rejected_total", reason="queue_full") == codes.count(503)
    assert read(narrow_server).sum("num_requests_waiting") == 0.0


def test_a_worker_that_dies_is_counted_and_the_next_one_goes_on_counting(fresh_server):
    server = fresh_server().wait_ready()
    before = read(server)
    assert before.counted("model_loads_total", "outcome") == {"loaded": 1.0}
    with server.stream(max_new_tokens=4000, ignore_eos=True) as received:
        next(received)
        server.kill_worker()
        rest = list(received)
    assert rest[-1]["error"]["code"] == "model_crashed"
    server.answer("/infer", {"text": "Hi", "max_new_tokens": 1})
    page = read(server)
    assert page.value("requests_finished_total", model=DEMO, finish_reason="model_crashed") == 1.0
    assert page.value("requests_finished_total", model=DEMO, finish_reason="length") == 1.0
    assert page.counted("model_unloads_total", "reason") == {"crashed": 1.0}
    assert page.counted("model_loads_total", "outcome") == {"loaded": 2.0}
    assert page.sum("num_requests_running") == 0.0


def test_reading_it_does_not_keep_a_model_awake(fresh_server):
    server = fresh_server(INACTIVITY_THRESHOLD_S=1).wait_ready()
    page = until(lambda: (told := read(server)).counted("model_unloads_total", "reason") and told)
    assert page.counted("model_unloads_total", "reason") == {"idle": 1.0}
    assert server.workers() == []

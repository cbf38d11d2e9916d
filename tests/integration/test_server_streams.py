"""Server-sent events over real HTTP, and clients that leave: nothing is computed for nobody."""

import asyncio

import httpx
import pytest
from live_server import PATIENCE_S, text_of, until

pytestmark = pytest.mark.model

LONG = {"text": "Once upon a time", "max_new_tokens": 4000, "ignore_eos": True}


def test_a_stream_is_an_event_stream_that_no_proxy_should_buffer(server):
    body = {"text": "Hi", "max_new_tokens": 4, "stream": True}
    with server.http.stream("POST", "/infer", json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].split(";")[0] == "text/event-stream"
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-request-id"]
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)


def test_an_infer_stream_is_deltas_then_the_whole_reply_then_done(server):
    with server.stream(max_new_tokens=16, ignore_eos=True, details=True) as received:
        *deltas, reply, done = list(received)
    assert all(event.keys() == {"delta"} and event["delta"] for event in deltas)
    assert len(deltas) > 3
    assert set(reply) == {"input", "result", "details"}
    assert (reply["input"], reply["result"]) == ("Once upon a time", text_of(deltas))
    assert reply["details"]["usage"]["completion_tokens"] == 16
    assert done == "[DONE]"


def test_a_chat_stream_ends_with_the_history_and_is_remembered(server):
    with server.stream("/chat", text="What is the capital of France?", session_id="streamed") as received:
        *deltas, reply, done = list(received)
    assert set(reply) == {"session_id", "result", "full_history"}
    assert "Paris" in reply["result"]
    assert reply["result"] == text_of(deltas)
    assert done == "[DONE]"
    again = server.answer("/chat", {"text": "And of Italy?", "session_id": "streamed", "max_new_tokens": 1})
    assert again["full_history"][:3] == reply["full_history"]


def test_the_first_event_comes_while_the_answer_is_still_being_made(server):
    with server.stream(max_new_tokens=40, ignore_eos=True) as received:
        first = next(received)
        in_flight = server.model_line()["in_flight"]
        rest = list(received)
    assert first.keys() == {"delta"}
    assert in_flight == 1
    assert len(rest) > 10
    assert rest[-1] == "[DONE]"


def test_a_request_that_cannot_start_keeps_its_status_also_as_a_stream(server):
    response = server.post("/infer", LONG | {"max_new_tokens": 9000, "stream": True})
    assert (response.status_code, response.json()["code"]) == (422, "context_length_exceeded")


@pytest.mark.parametrize("path", ["/infer", "/chat"])
def test_a_client_that_closes_a_stream_frees_its_slot(server, path):
    worker = server.worker_id()
    with server.stream(path, **LONG) as received:
        assert all(next(received).keys() == {"delta"} for _ in range(3))
        server.wait_busy(1)
    server.wait_idle()
    assert server.worker_id() == worker
    assert server.result(max_new_tokens=4, ignore_eos=True)


async def test_a_chat_turn_cut_short_is_not_remembered(server):
    with server.stream("/chat", **LONG, session_id="cut-short") as received:
        next(received)
    server.wait_idle()
    turn = server.answer("/chat", {"text": "Hi", "session_id": "cut-short", "max_new_tokens": 1})
    assert [message["role"] for message in turn["full_history"]] == ["system", "user", "assistant"]
    assert turn["full_history"][1]["content"] == "Hi"


async def _leave(*requests):
    """Close the connections of clients that wait for a whole answer."""
    for request in requests:
        request.cancel()
    results = await asyncio.gather(*requests, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)


async def _eventually(condition):
    await asyncio.to_thread(until, condition)


def _counts(server):
    line = server.model_line()
    return line["in_flight"], line["queued"]


@pytest.mark.parametrize("path", ["/infer", "/chat"])
async def test_a_client_that_leaves_while_it_waits_for_a_whole_answer_frees_its_slot(server, path):
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as client:
        request = asyncio.create_task(client.post(path, json=LONG))
        await _eventually(lambda: _counts(server) == (1, 0))
        await _leave(request)
    await _eventually(lambda: _counts(server) == (0, 0))
    assert server.result(max_new_tokens=4, ignore_eos=True)


async def test_clients_that_leave_the_queue_are_forgotten_and_the_running_one_is_not(narrow_server):
    server = narrow_server
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as client:
        with server.stream(**LONG) as received:
            next(received)
            queued = [
                asyncio.create_task(client.post(path, json=LONG | {"stream": stream}))
                for path, stream in (("/infer", False), ("/infer", True), ("/chat", False))
            ]
            await _eventually(lambda: _counts(server) == (1, 3))
            await _leave(*queued)
            await _eventually(lambda: _counts(server) == (1, 0))
            assert next(received).keys() == {"delta"}
    await _eventually(lambda: _counts(server) == (0, 0))
    assert server.result(max_new_tokens=4, ignore_eos=True)


async def test_many_that_leave_at_once_leave_nothing_behind(server):
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as client:
        requests = [asyncio.create_task(client.post("/infer", json=LONG)) for _ in range(40)]
        await _eventually(lambda: sum(_counts(server)) == 40)
        await _leave(*requests)
    await _eventually(lambda: _counts(server) == (0, 0))
    assert server.result(max_new_tokens=4, ignore_eos=True)

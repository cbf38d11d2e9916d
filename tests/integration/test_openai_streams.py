"""Streams under /v1 over real HTTP: their frames, their errors, and clients that leave or do not read."""

import asyncio
import json
import socket
from collections import defaultdict
from urllib.parse import urlsplit

import httpx
import pytest
from live_server import DEMO, PATIENCE_S, TINY, events, until

pytestmark = pytest.mark.model

STORY = [{"role": "user", "content": "Tell me a story."}]
PATHS = {
    "/v1/chat/completions": {"messages": STORY},
    "/v1/completions": {"prompt": "Once upon a time"},
    "/v1/responses": {"input": "Tell me a story.", "store": False},
}


def asked(path, tokens=4000, **more):
    """A request for an answer of exactly so many tokens."""
    limit = "max_output_tokens" if path.endswith("responses") else "max_tokens"
    return {"model": DEMO, **PATHS[path], limit: tokens, "temperature": 0, "ignore_eos": True, **more}


def stream(server, path, **body):
    return server.http.stream("POST", path, json=body | {"stream": True})


def texts(chunks):
    """The text of each choice of chunks of either kind."""
    said = defaultdict(str)
    for chunk in chunks:
        for choice in chunk["choices"]:
            said[choice["index"]] += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
    return dict(said)


def counts(server):
    line = server.model_line()
    return line["in_flight"], line["queued"]


# Frames


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_is_an_event_stream_that_no_proxy_should_buffer(server, path):
    with stream(server, path, **asked(path, 4)) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].split(";")[0] == "text/event-stream"
        assert (response.headers["x-accel-buffering"], response.headers["cache-control"]) == ("no", "no-store")
        lines = list(response.iter_lines())
    frames = [line for line in lines if line]
    if path == "/v1/responses":
        kinds = [line.removeprefix("event: ") for line in frames[::2]]
        assert kinds == [json.loads(line.removeprefix("data: "))["type"] for line in frames[1::2]]
        assert (kinds[0], kinds[-1]) == ("response.created", "response.incomplete")
    else:
        assert all(line.startswith("data: ") for line in frames)
        assert frames[-1] == "data: [DONE]"
        assert all(isinstance(event, dict) for event in list(events(lines))[:-1])  # encoded once


@pytest.mark.parametrize("path", PATHS)
def test_the_first_event_comes_while_the_answer_is_still_being_made(server, path):
    with stream(server, path, **asked(path, 60)) as response:
        received = events(response.iter_lines())
        first = next(received)
        in_flight = server.model_line()["in_flight"]
        rest = list(received)
    assert first
    assert in_flight == 1
    assert len(rest) > 10


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_usage_is_exact_over_all_choices_and_comes_last_and_once(server, path):
    body = asked(path, 9, n=3, temperature=1, seed=5)
    whole = server.answer(path, body)
    with stream(server, path, **body, stream_options={"include_usage": True}) as response:
        *chunks, counted, done = list(events(response.iter_lines()))
    assert done == "[DONE]"
    assert counted["choices"] == []
    assert counted["usage"]["completion_tokens"] == 27
    for kind in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert counted["usage"][kind] == whole["usage"][kind]
    assert not any(chunk.get("usage") for chunk in chunks)
    ends = [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert ends == ["length"] * 3
    key = "text" if path == "/v1/completions" else "message"
    said = [choice[key] if key == "text" else choice[key]["content"] for choice in whole["choices"]]
    assert [texts(chunks)[index] for index in range(3)] == said


def test_a_stop_string_never_shows_however_it_is_cut(server):
    path = "/v1/completions"
    whole = server.answer(path, asked(path, 40))["choices"][0]["text"]
    for start in range(8, 24, 3):
        stop = whole[start : start + 6]
        with stream(server, path, **asked(path, 40, stop=[stop])) as response:
            chunks = list(events(response.iter_lines()))[:-1]
        assert texts(chunks) == {0: whole[: whole.index(stop)]}
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("path", PATHS)
def test_a_request_that_cannot_start_keeps_its_status_also_as_a_stream(server, path):
    limit = {"/v1/responses": {"max_output_tokens": 9000}}.get(path, {"max_tokens": 9000})
    response = server.post(path, asked(path) | limit | {"stream": True})
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/json"
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_a_wait_for_a_slot_is_filled_with_pings(narrow_server):
    server = narrow_server
    path = "/v1/chat/completions"
    with server.stream(max_new_tokens=4000, ignore_eos=True) as running:
        next(running)
        with stream(server, path, **asked(path, 2)) as response:
            assert response.status_code == 200
            assert next(line for line in response.iter_lines() if line) == ": ping"
    until(lambda: counts(server) == (0, 0))


# Errors


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_worker_that_dies_is_told_in_openais_shape_and_nothing_follows(fresh_server, path):
    server = fresh_server(MODEL=TINY, MAX_NEW_TOKENS=32000).wait_ready()
    with stream(server, path, **asked(path, 30000, model=TINY)) as response:
        received = events(response.iter_lines())
        assert all("choices" in next(received) for _ in range(3))
        server.kill_worker()
        *_, last = received
    assert set(last) == {"error"}
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert (last["error"]["code"], last["error"]["type"]) == ("model_crashed", "server_error")
    assert server.answer(path, asked(path, 2, model=TINY))["choices"]


def test_a_response_whose_worker_dies_has_failed(fresh_server):
    server = fresh_server(MODEL=TINY, MAX_NEW_TOKENS=32000).wait_ready()
    path = "/v1/responses"
    with stream(server, path, **asked(path, 30000, model=TINY)) as response:
        received = events(response.iter_lines())
        while next(received)["type"] != "response.output_text.delta":
            pass
        server.kill_worker()
        *_, last = received
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"]["message"]


# Clients that leave, and clients that do not read


@pytest.mark.parametrize("path", PATHS)
def test_a_client_that_closes_a_stream_frees_its_slot(server, path):
    worker = server.worker_id()
    with stream(server, path, **asked(path)) as response:
        received = events(response.iter_lines())
        assert all(next(received) for _ in range(6))
        server.wait_busy(1)
    server.wait_idle()
    assert server.worker_id() == worker


@pytest.mark.parametrize("path", PATHS)
async def test_clients_that_leave_whole_answers_and_queues_are_forgotten(narrow_server, path):
    server = narrow_server
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as client:
        bodies = (asked(path), asked(path), asked(path, stream=True))
        waiting = [asyncio.create_task(client.post(path, json=body)) for body in bodies]
        await asyncio.to_thread(until, lambda: counts(server) == (1, 2))
        for request in waiting:
            request.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    await asyncio.to_thread(until, lambda: counts(server) == (0, 0))
    assert server.result(max_new_tokens=2, ignore_eos=True)


async def test_all_choices_end_with_their_client(server):
    path = "/v1/completions"
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as client:
        request = asyncio.create_task(client.post(path, json=asked(path, 500, n=16, temperature=1)))
        await asyncio.to_thread(until, lambda: counts(server) == (1, 0))
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    await asyncio.to_thread(until, lambda: counts(server) == (0, 0))
    assert server.result(max_new_tokens=2, ignore_eos=True)


def test_a_client_that_does_not_read_is_cut_off_and_its_work_ended(fresh_server):
    server = fresh_server(MODEL=TINY, STREAM_WRITE_TIMEOUT_S=1, MAX_NEW_TOKENS=32000).wait_ready()
    path = "/v1/chat/completions"  # with the twenty likeliest in its place each token takes kilobytes
    long = asked(path, 30000, model=TINY, logprobs=True, top_logprobs=20, stream=True)
    address = urlsplit(server.url)
    content = json.dumps(long).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # before it connects: the kernel keeps little for us
        raw.connect((address.hostname, address.port))
        raw.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        until(lambda: counts(server) == (1, 0))
        until(lambda: counts(server) == (0, 0))
        raw.settimeout(PATIENCE_S)
        heard = bytearray()
        try:
            while piece := raw.recv(65536):
                heard += piece
        except ConnectionError:
            pass  # cut off
    assert heard.startswith(b"HTTP/1.1 200 ")
    assert b"[DONE]" not in heard

"""Answers through the proxy: as they come, for as long as somebody listens."""

import httpx
import pytest
from live_server import events, text_of
from nginx_proxy import PREFIX

LONG = {"text": "Once upon a time", "max_new_tokens": 4000, "ignore_eos": True, "stream": True}


def test_the_first_event_arrives_while_the_answer_is_still_being_made(client, server):
    with client.stream("POST", "/infer", json=LONG) as response:
        assert response.status_code == 200
        received = events(response.iter_lines())  # kept: one that nobody holds closes the connection
        first = next(received)
        assert server.model_line()["in_flight"] == 1
    assert first.keys() == {"delta"}
    server.wait_idle()


def test_nobody_computes_for_a_client_that_left_the_proxy(client, server):
    with client.stream("POST", "/infer", json=LONG) as response:
        received = events(response.iter_lines())
        assert "delta" in next(received)
        server.wait_busy()
    server.wait_idle()
    assert server.status()["state"] == "ready"


def test_a_stream_through_the_proxy_is_whole_and_ends(client):
    body = {"text": "Hello", "max_new_tokens": 40, "ignore_eos": True, "stream": True}
    with client.stream("POST", "/infer", json=body) as response:
        *deltas, reply, done = list(events(response.iter_lines()))
    assert done == "[DONE]"
    assert len(deltas) > 1
    assert text_of(deltas) == reply["result"]


def test_openais_stream_comes_through_as_well(client):
    messages = [{"role": "user", "content": "Hello"}]
    body = {"model": "tiny/random-llama", "messages": messages, "max_tokens": 8, "stream": True, "temperature": 0}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        received = list(events(response.iter_lines()))
    assert received[-1] == "[DONE]"
    assert received[0]["object"] == "chat.completion.chunk"


def test_without_tls_nothing_is_answered(proxy):
    response = httpx.get(f"http://localhost:{proxy.port}{PREFIX}/health/live", trust_env=False)
    assert response.status_code == 400


def test_a_certificate_that_nobody_vouches_for_is_refused_by_clients(proxy):
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{proxy.url}/health/live", trust_env=False)

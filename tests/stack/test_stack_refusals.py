"""What nginx itself refuses: in the shapes and with the codes of the server, and told of in one log without secrets."""

import json
import socket
from contextlib import ExitStack

import pytest
from bare_client import answer, connected
from live_server import PATIENCE_S, until
from nginx_proxy import PREFIX

from stub_hub import unused_address

MOST = 2
LONG = {"text": "Once upon a time", "max_new_tokens": 4000, "ignore_eos": True, "stream": True}


def refusal(status, code, request_id):
    return {"status": status, "code": code, "instance": f"urn:inferapi:request:{request_id}"}


def asked(proxy, request):
    """What comes for a request that no decent client would make."""
    with connected(proxy) as connection:
        connection.sendall(request)
        return answer(connection)


def test_headers_that_are_too_large_are_refused_as_such(client):
    response = client.get("/status", headers={"X-Much": "x" * 40_000})
    assert (response.status_code, response.json()["code"]) == (431, "head_too_large")
    assert response.json()["status"] == 431


@pytest.mark.parametrize(
    ("request_line", "status", "code", "method"),
    [
        (f"GET {PREFIX}/{'x' * 9000} HTTP/1.1", 431, "head_too_large", "GET"),
        (f"POST {PREFIX}/infer HTTP/1.1\r\nContent-Length: many", 400, "malformed_http", "POST"),
        (f"POST {PREFIX}/infer HTTP/1.1\r\nTransfer-Encoding: br", 400, "malformed_http", "POST"),
        (f"GET {PREFIX}/status HTTP/3.7", 400, "malformed_http", "GET"),
        (f"TRACE {PREFIX}/status HTTP/1.1", 405, "method_not_allowed", "TRACE"),
        (f"POST {PREFIX}/metrics HTTP/1.1", 404, "not_found", "POST"),
        ("BREW /coffee HTTP/1.1", 404, "not_found", "_OTHER"),
    ],
    ids=["line", "length", "coding", "version", "trace", "metrics", "beside"],
)
def test_what_is_refused_is_told_as_the_server_tells_it_and_logged_as_it_was_asked(
    proxy, request_line, status, code, method
):
    got, headers, told = asked(proxy, f"{request_line}\r\nHost: localhost\r\n\r\n".encode())
    request_id = headers["x-request-id"]
    assert (got, headers.get_content_type()) == (status, "application/problem+json")
    assert told.items() >= refusal(status, code, request_id).items()
    assert told["type"] == f"urn:inferapi:error:{code}"
    line = proxy.logged(request_id)
    assert (line["method"], line["status"]) == (method, str(status))


def test_without_tls_it_is_no_http_that_is_spoken_here(proxy):
    with socket.create_connection(("127.0.0.1", proxy.port), PATIENCE_S) as connection:
        connection.sendall(f"GET {PREFIX}/status HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        status, _, told = answer(connection)
    assert (status, told["status"], told["code"]) == (400, 400, "malformed_http")


def test_under_v1_they_have_openais_shape(proxy):
    status, headers, told = asked(proxy, f"TRACE {PREFIX}/v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert (status, headers.get_content_type()) == (405, "application/json")
    assert told == {
        "error": {
            "message": "Method Not Allowed.",
            "type": "invalid_request_error",
            "param": None,
            "code": "method_not_allowed",
        }
    }


def test_the_proxy_says_of_an_unknown_path_what_the_server_says(client, server, proxy):
    by_server = server.http.get("/nowhere", headers={"X-Request-ID": "same"})
    by_proxy = client.get(f"https://localhost:{proxy.port}/nowhere", headers={"X-Request-ID": "same"})
    assert (by_proxy.status_code, by_proxy.json()) == (by_server.status_code, by_server.json())
    assert by_proxy.headers["x-request-id"] == "same"


def test_no_address_may_have_more_than_its_share_of_requests_at_once(start_proxy, server, admin_key):
    upstream = server.url.removeprefix("http://")
    proxy = start_proxy(upstream, prefix=PREFIX, PROXY_MAX_CONNECTIONS_PER_ADDRESS=MOST)
    with proxy.client(admin_key) as client:
        with ExitStack() as held:
            for _ in range(MOST):
                stream = held.enter_context(client.stream("POST", "/infer", json=LONG))
                assert stream.status_code == 200
            native = client.get("/status", headers={"X-Request-ID": "one-more"})
            openai = client.get("/v1/models")
        until(lambda: client.get("/status").status_code == 200)  # those who left count no more
    assert (native.status_code, native.headers["retry-after"]) == (503, "1")
    assert native.json() == refusal(503, "too_many_connections", "one-more") | {
        "type": "urn:inferapi:error:too_many_connections",
        "title": "Service Unavailable",
        "detail": f"{MOST} connections are in use already.",
    }
    assert (openai.status_code, openai.headers["retry-after"]) == (503, "1")
    assert openai.json()["error"]["type"] == "server_error"
    assert openai.json()["error"]["code"] == "too_many_connections"
    server.wait_idle()


def test_no_log_has_the_id_of_a_session_or_a_query_while_the_server_is_away(start_proxy):
    proxy = start_proxy(unused_address().removeprefix("http://"))
    with proxy.client() as client:
        response = client.get("/sessions/a-secret-id?after=a-secret-cursor")
    assert response.status_code == 502
    assert proxy.logged(response.headers["x-request-id"])["path"] == "/sessions/*"
    for log in (proxy.log, proxy.errors):
        assert "a-secret" not in log.read_text(encoding="utf-8")


def test_a_trace_of_a_stranger_ends_at_the_proxy(client, server):
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01", "tracestate": "vendor=1"}
    for one, request_id in ((client, "traced-by-proxy"), (server.http, "traced-directly")):
        one.get("/status", headers=headers | {"X-Request-ID": request_id})
    lines = {}

    def logged():
        *whole, _ = server.log.read_text(encoding="utf-8").split("\n")
        for line in (json.loads(text) for text in whole if text.startswith("{")):
            if line["logger"] == "inferapi.access" and str(line.get("request_id")).startswith("traced-"):
                lines[line["request_id"]] = line["trace_id"]
        return len(lines) == 2

    until(logged)
    assert lines["traced-directly"] == trace_id
    assert lines["traced-by-proxy"] != trace_id

"""Sizes, on which proxy and server agree to the byte, and refusals that are the proxy's own."""

import http.client
import json
from contextlib import closing

import pytest
from live_server import PATIENCE_S

TRIES = 20  # what is refused while it is still being sent is a race: of so many none may be lost
LIMITS = {"/infer": "PROXY_MAX_BODY_BYTES", "/sessions/import": "PROXY_MAX_IMPORT_BYTES"}


def padded(body, size_bytes):
    """The same JSON, blanks after it, of that size."""
    return json.dumps(body).encode().ljust(size_bytes)


@pytest.fixture
def bodies(client):
    """A good body of each path."""
    session_id = client.post("/chat", json={"text": "Hi", "max_new_tokens": 2}).json()["session_id"]
    exported = client.get(f"/sessions/{session_id}/export").json()
    assert client.delete(f"/sessions/{session_id}").is_success
    return {"/infer": {"text": "Hi", "max_new_tokens": 1}, "/sessions/import": exported}


def send(client, path, content):
    return client.post(path, content=content, headers={"Content-Type": "application/json"})


@pytest.mark.parametrize("path", LIMITS)
def test_the_largest_body_that_the_server_takes_passes_the_proxy(client, proxy, bodies, path):
    response = send(client, path, padded(bodies[path], int(proxy.told[LIMITS[path]])))
    assert response.is_success, response.text


def refused_by_the_server(server, path, size_bytes):
    """Its answer to a body of that length, which is announced and never sent."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE_S)
    with closing(connection):
        connection.putrequest("POST", path)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(size_bytes))
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, answer.headers.get_content_type(), json.loads(answer.read())


@pytest.mark.parametrize("path", LIMITS)
def test_one_byte_more_is_refused_by_both_with_the_same_code(client, proxy, server, bodies, path):
    size_bytes = int(proxy.told[LIMITS[path]]) + 1
    response = send(client, path, padded(bodies[path], size_bytes))
    by_proxy, (status, media_type, by_server) = response.json(), refused_by_the_server(server, path, size_bytes)
    assert response.status_code == status == 413
    assert response.headers["content-type"] == media_type == "application/problem+json"
    assert by_proxy.keys() == by_server.keys() - {"limit_bytes"}  # nginx knows no variable for its own limit
    for key in ("type", "title", "status", "code"):
        assert by_proxy[key] == by_server[key]
    assert by_proxy["instance"] == f"urn:inferapi:request:{response.headers['x-request-id']}"


def test_under_v1_a_refusal_has_openais_shape(client, proxy, server):
    path, size_bytes = "/v1/chat/completions", int(proxy.told["PROXY_MAX_BODY_BYTES"]) + 1
    response = send(client, path, b" " * size_bytes)
    status, media_type, by_server = refused_by_the_server(server, path, size_bytes)
    assert response.status_code == status == 413
    assert response.headers["content-type"] == media_type == "application/json"
    by_proxy = response.json()
    assert by_proxy["error"].pop("message")
    assert by_server["error"].pop("message")
    assert by_proxy == by_server


@pytest.mark.parametrize("excess_bytes", [1, 2 << 20])
def test_a_body_of_unknown_length_has_the_same_limit(client, proxy, excess_bytes):
    size_bytes = int(proxy.told["PROXY_MAX_BODY_BYTES"]) + excess_bytes
    for _ in range(TRIES):
        response = send(client, "/infer", (b" " * 65_536 for _ in range(size_bytes // 65_536 + 1)))
        assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


def test_the_servers_own_errors_pass_as_they_are(client, server):
    told = [one.post("/infer", json={"text": 5}, headers={"X-Request-ID": "same"}) for one in (client, server.http)]
    assert told[0].status_code == told[1].status_code == 422
    assert told[0].json() == told[1].json()

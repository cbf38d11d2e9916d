"""Where a request comes from and went to: addresses, schemes, paths below a prefix, ids."""

import json

import httpx
import pytest
from live_server import TINY, until
from nginx_proxy import PREFIX

ELSEWHERE = "127.0.0.2"
FORGED = {
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Proto": "http",
    "Forwarded": "for=203.0.113.9;proto=http",
    "X-Real-IP": "203.0.113.9",
}


def access_line(server, request_id):
    """The line of the server's log about a request, once it is there."""

    def found():
        *whole, _ = server.log.read_text(encoding="utf-8").split("\n")
        lines = [json.loads(line) for line in whole if line.startswith("{")]
        told = (line for line in lines if line.get("request_id") == request_id)
        return next((line["message"] for line in told if line["logger"] == "inferapi.access"), None)

    return until(found)


@pytest.fixture
def client_elsewhere(proxy, admin_key):
    """At another address than the proxy's."""
    with proxy.client(admin_key, transport=httpx.HTTPTransport(verify=proxy.trust, local_address=ELSEWHERE)) as client:
        yield client


def test_the_server_sees_the_clients_address_and_not_what_it_claims(client_elsewhere, proxy, server):
    for request_id, headers in {"honest": {}, "forged": FORGED}.items():
        client_elsewhere.get("/status", headers=headers | {"X-Request-ID": request_id})
        assert access_line(server, request_id).endswith(f" for {ELSEWHERE}")
        assert proxy.logged(request_id)["client"] == ELSEWHERE


def test_a_server_that_was_not_told_of_its_proxy_believes_nobody(bare_server):
    bare_server.http.get("/status", headers=FORGED | {"X-Request-ID": "unbelieved"})
    assert access_line(bare_server, "unbelieved").endswith(" for 127.0.0.1")


@pytest.mark.parametrize("headers", [{}, FORGED], ids=["honest", "forged"])
def test_a_redirect_stays_below_the_prefix_and_in_tls(client, proxy, headers):
    response = client.get("/status/", headers=headers)
    assert (response.status_code, response.headers["location"]) == (307, f"{proxy.url}/status")


def test_the_manual_names_the_prefix(client):
    assert client.get("/openapi.json").json()["servers"] == [{"url": PREFIX}]
    assert f"{PREFIX}/openapi.json" in client.get("/docs").text


def test_beside_the_prefix_there_is_nothing_and_metrics_are_not_for_clients(client, proxy):
    root = f"https://localhost:{proxy.port}"
    paths = ["/", "/status", "/health/live", "/llmx", "/-/problem", f"{PREFIX}/metrics", f"{PREFIX}/../status"]
    assert [client.get(f"{root}{path}").status_code for path in paths] == [404] * len(paths)
    assert client.get(f"{root}{PREFIX}/health/live").json() == {"status": "live"}


def test_a_model_whose_name_has_a_slash_is_found(client):
    organization, _, name = TINY.partition("/")
    assert client.get(f"/v1/models/{organization}%2F{name}").json()["id"] == TINY
    assert client.get(f"/v1/models/{TINY}").json()["id"] == TINY


def test_both_logs_tell_of_a_request_by_the_same_id(client, proxy, server):
    given = client.get("/status").headers["x-request-id"]
    assert proxy.logged(given)["path"] == f"{PREFIX}/status"
    assert access_line(server, given).startswith("GET '/status' 200 ")


def test_an_id_that_would_break_a_line_is_replaced_and_ids_of_sessions_are_not_logged(client, proxy):
    headers = {"X-Request-ID": 'x","client":"forged'}
    response = client.get("/sessions/a-secret-id?x=1", headers=headers)
    line = proxy.logged(response.headers["x-request-id"])
    assert (line["status"], line["path"], line["client"]) == ("404", f"{PREFIX}/sessions/*", "127.0.0.1")
    assert "a-secret-id" not in proxy.log.read_text(encoding="utf-8")

"""API keys over real HTTP: what one key has, no other sees."""

import json
import re
from pathlib import Path

import pytest
from live_server import TINY

pytestmark = pytest.mark.model

KEYS = {"a": "key-of-a-0123456789", "b": "key-of-b-0123456789", "admin": "key-of-the-admin-0123"}


def code_of(response):
    """Status and code, in the shape of either surface."""
    body = response.json()
    return response.status_code, body.get("error", body)["code"]


@pytest.fixture(scope="module")
def keyed(start_server):
    scopes = {"a": ["infer"], "b": ["infer"], "admin": ["admin"]}
    keys = [{"id": name, "key": key, "scopes": scopes[name]} for name, key in KEYS.items()]
    server = start_server(MODEL=TINY, API_KEYS=json.dumps(keys)).wait_ready()
    yield server
    server.stop()


@pytest.fixture
def as_key(keyed):
    def ask(name, method, path, **options):
        headers = {"Authorization": f"Bearer {KEYS[name]}"} if name else {}
        return keyed.http.request(method, path, headers=headers, **options)

    return ask


def test_another_keys_session_is_as_unknown_as_one_that_never_was(as_key):
    body = {"text": "My secret", "session_id": "secret", "max_new_tokens": 4}
    told = as_key("a", "POST", "/chat", json=body).json()
    for method, tail in (("GET", ""), ("DELETE", ""), ("GET", "/export"), ("POST", "/fork"), ("POST", "/rewind")):
        of_a = as_key("b", method, f"/sessions/secret{tail}")
        of_nobody = as_key("b", method, f"/sessions/nobody{tail}")
        assert (of_a.status_code, of_a.content) == (404, of_nobody.content), (method, tail)
    assert as_key("b", "GET", "/sessions").json() == {"sessions": [], "next_cursor": None}
    mine = as_key("b", "POST", "/chat", json=body | {"text": "Mine"}).json()
    assert [message["content"] for message in mine["full_history"][1::2]] == ["Mine"]
    assert as_key("a", "GET", "/sessions/secret").json()["full_history"] == told["full_history"]


def test_nothing_that_one_key_computed_is_reused_for_another(as_key):
    body = {"text": "A long text that two keys both send. " * 30, "max_new_tokens": 4, "details": True}

    def cached(name):
        return as_key(name, "POST", "/infer", json=body).json()["details"]["usage"]["cached_tokens"]

    assert cached("a") == 0
    assert cached("a") > 0
    assert cached("b") == 0


def test_without_a_key_there_is_nothing_but_health_and_the_manual(keyed, as_key):
    for path, methods in keyed.http.get("/openapi.json").json()["paths"].items():
        for method in methods:
            response = as_key(None, method.upper(), re.sub(r"\{\w+\}", "x", path), json={})
            if path.startswith("/health/"):
                assert response.status_code == 200
            else:
                assert (path, *code_of(response)) == (path, 401, "unauthenticated")
                assert response.headers["www-authenticate"] == "Bearer"


def test_models_are_the_admins_business_and_chats_are_not(as_key):
    assert code_of(as_key("a", "POST", "/load_model", json={"model_name": TINY})) == (403, "insufficient_scope")
    assert code_of(as_key("a", "POST", "/system_prompt", json={"prompt": "x"})) == (403, "insufficient_scope")
    assert as_key("admin", "POST", "/load_model", json={"model_name": TINY}).status_code == 200
    assert code_of(as_key("admin", "POST", "/chat", json={"text": "Hi"})) == (403, "insufficient_scope")


def test_no_key_is_ever_written_down(keyed, as_key):
    as_key("a", "POST", "/chat", json={"text": "Hi", "max_new_tokens": 4})
    written = [Path(keyed.log), *(keyed.log.parent / "inferapi").iterdir()]
    for file in written:
        content = file.read_bytes()
        assert not any(key.encode() in content for key in KEYS.values())

"""Without keys only this machine is answered, whatever the ASGI server binds, unless the operator says otherwise."""

from __future__ import annotations

import hashlib
import json

import pytest

from fakes import settle
from inferapi.api.auth import ApiKey

SECRET = "key-of-ann-0123456789"
ANN = ApiKey("ann", hashlib.sha256(SECRET.encode()).digest(), frozenset({"infer"}))


async def answer(app, server, *, path: str = "/infer", headers: tuple[tuple[bytes, bytes], ...] = ()):
    """Status and body of a request that came to this address of the server's."""
    sent = []
    scope = {
        "type": "http",
        "method": "POST" if path == "/infer" else "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), (b"content-length", b"14"), *headers],
        "client": ("203.0.113.7", 1),
        "http_version": "1.1",
        "scheme": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
    }
    if server is not None:
        scope["server"] = server
    messages = [{"type": "http.request", "body": b'{"text": "Hi"}'}]

    async def receive():
        if messages:
            return messages.pop()
        await settle()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent))


@pytest.mark.parametrize(
    "server",
    [
        ("0.0.0.0", 8000),
        ("192.168.1.5", 8000),
        ("::", 8000),
        ("fe80::1%eth0", 8000),
        ("::ffff:192.168.1.5", 8000),
        ("example.org", 80),
        ("127.0.0.1.example.org", 80),
        ("", 80),
        None,
    ],
)
async def test_who_comes_from_elsewhere_is_refused(stage, server):
    await stage.load()
    status, body = await answer(stage.app(allows_anonymous=False), server)
    assert (status, body["code"]) == (403, "anonymous_refused")
    assert stage.engine.requests == []


@pytest.mark.parametrize(
    "server", [("127.0.0.1", 8000), ("127.1.2.3", 8000), ("::1", 8000), ("::ffff:127.0.0.1", 8000), ("/run/api", None)]
)
async def test_this_machine_is_answered(stage, server):
    await stage.load()
    status, body = await answer(stage.app(allows_anonymous=False), server)
    assert (status, body["result"]) == (200, "Hello there")


async def test_the_operator_may_say_otherwise(stage):
    await stage.load()
    status, _ = await answer(stage.app(allows_anonymous=True), ("0.0.0.0", 8000))
    assert status == 200


@pytest.mark.parametrize("allows_anonymous", [True, False])
@pytest.mark.parametrize("server", [("0.0.0.0", 8000), ("127.0.0.1", 8000)])
async def test_where_there_are_keys_they_alone_decide(stage, allows_anonymous, server):
    await stage.load()
    app = stage.app(keys=(ANN,), allows_anonymous=allows_anonymous)
    without, _ = await answer(app, server)
    with_key, _ = await answer(app, server, headers=((b"authorization", f"Bearer {SECRET}".encode()),))
    assert (without, with_key) == (401, 200)


async def test_a_probe_from_elsewhere_is_answered(stage):
    status, _ = await answer(stage.app(allows_anonymous=False), ("10.0.0.7", 8000), path="/health/live")
    assert status == 200


async def test_the_shape_is_openais_under_v1(stage):
    status, body = await answer(stage.app(allows_anonymous=False), ("10.0.0.7", 8000), path="/v1/models")
    assert (status, body["error"]["code"], body["error"]["type"]) == (403, "anonymous_refused", "permission_error")

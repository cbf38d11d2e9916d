from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import pytest

from fakes import settle


@asynccontextmanager
async def _client_of(app):
    """A client whose server errors come as answers, as they do over a network."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


@pytest.fixture
def client_of():
    """Makes a client of an application."""
    return _client_of


@pytest.fixture
async def client(stage):
    """A client of ``stage``, before any model is loaded."""
    async with _client_of(stage.app()) as client:
        yield client


class Call:
    """One request by hand, for a client that reads as it comes, and that can leave."""

    def __init__(self, app, path: str, body: dict, method: str = "POST", headers: dict[str, str] | None = None) -> None:
        self._messages = [{"type": "http.request", "body": json.dumps(body).encode()}]
        self._left = asyncio.Event()
        self.sent: list[dict] = []
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", b"1"),
                *((name.lower().encode(), value.encode()) for name, value in (headers or {}).items()),
            ],
            "server": ("test", 80),
            "client": ("test", 1),
            "http_version": "1.1",
            "scheme": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def leave(self) -> None:
        self._left.set()
        await settle()

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def status(self) -> int | None:
        return self.sent[0]["status"] if self.sent else None

    async def _receive(self) -> dict:
        if self._messages:
            return self._messages.pop()
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict) -> None:
        self.sent.append(message)


@pytest.fixture
async def call():
    """Makes a ``Call``, and ends it after the test."""
    calls: list[Call] = []

    def make(*args, **kwargs) -> Call:
        calls.append(Call(*args, **kwargs))
        return calls[-1]

    yield make
    for one in calls:
        one.task.cancel()
        await asyncio.gather(one.task, return_exceptions=True)

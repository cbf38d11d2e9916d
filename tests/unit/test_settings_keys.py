"""Settings about who may ask, how much, and from where."""

from __future__ import annotations

import json

import httpx
import pytest
from pydantic import ValidationError

from inferapi.container import Container, make_policy
from inferapi.settings import Settings

pytestmark = pytest.mark.usefixtures("bare_environment")

KEY = "k3y-of-ann-0123456789"


def test_by_default_nothing_is_limited_closed_or_opened():
    settings = Settings()
    assert (settings.key_requests_per_minute, settings.key_max_concurrency) == (None, None)
    assert (settings.cors_origins, settings.trusted_hosts, settings.load_on_demand) == ((), (), True)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("key_requests_per_minute", "60", 60),
        ("key_max_concurrency", "4", 4),
        ("key_max_concurrency", "", None),
        ("load_on_demand", "false", False),
        (
            "cors_origins",
            '["https://Chat.example.org", "http://localhost:3000", "http://[::1]:3000", "app://ui"]',
            ("https://chat.example.org", "http://localhost:3000", "http://[::1]:3000", "app://ui"),
        ),
        (
            "trusted_hosts",
            '["Api.example.org", "*.inner.example.org", "127.0.0.1", "[::1]"]',
            ("api.example.org", "*.inner.example.org", "127.0.0.1", "[::1]"),
        ),
    ],
)
def test_a_setting_is_read_from_the_environment(monkeypatch, name, text, expected):
    monkeypatch.setenv(f"INFERAPI_{name.upper()}", text)
    assert getattr(Settings(), name) == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("key_requests_per_minute", "0"),
        ("key_requests_per_minute", "100001"),
        ("key_requests_per_minute", "1.5"),
        ("key_max_concurrency", "0"),
        ("key_max_concurrency", "-1"),
        ("load_on_demand", "perhaps"),
        *[
            ("cors_origins", json.dumps([origin]))
            for origin in (
                "*",
                "null",
                "",
                "example.org",
                "https://*.example.org",
                "https://example.org/",
                "https://example.org/page",
                "https://example.org?x",
                "https://user@example.org",
                "https://example.org:443",
                "http://example.org:80",
                "https://example.org:port",
                "https://example.org:70000",
                "https://[::1",
                "https://",
                "https://example.org evil",
                "https://example.org\n",
            )
        ],
        *[
            ("trusted_hosts", json.dumps([host]))
            for host in ("*", "", "a.*", "*example.org", "example.org:8000", "http://example.org", "a b", "::1", "a\n")
        ],
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(monkeypatch, name, text):
    monkeypatch.setenv(f"INFERAPI_{name.upper()}", text)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert [entry["loc"][0] for entry in caught.value.errors()] == [name]


def test_who_may_load_is_part_of_the_policy(tmp_path):
    settings = Settings(device="cpu", models_dir=tmp_path, load_on_demand=False)
    assert make_policy(settings).loads_on_demand is False


async def test_the_limits_origins_and_hosts_of_the_settings_are_those_of_the_application(tmp_path):
    settings = Settings(
        device="cpu",
        models_dir=tmp_path,
        session_store_url="memory://",
        api_keys=({"id": "ann", "key": KEY},),
        key_requests_per_minute=2,
        cors_origins=("https://chat.example.org",),
        trusted_hosts=("api",),
    )
    app = Container(settings=settings).app()
    headers = {"Authorization": f"Bearer {KEY}", "Origin": "https://chat.example.org"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api") as client:
        answers = [await client.get("/sessions", headers=headers) for _ in range(3)]
        elsewhere = await client.get("/sessions", headers=headers | {"Host": "other"})
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert {answer.headers["access-control-allow-origin"] for answer in answers} == {"https://chat.example.org"}
    assert (elsewhere.status_code, elsewhere.json()["code"]) == (400, "host_not_trusted")


@pytest.mark.parametrize(("allow", "expected"), [(False, 403), (True, 200)])
async def test_without_keys_an_asgi_server_that_listens_beyond_loopback_is_no_way_in(tmp_path, allow, expected):
    settings = Settings(
        device="cpu", models_dir=tmp_path, session_store_url="memory://", allow_anonymous=allow, api_keys=()
    )
    app = Container(settings=settings).app()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://192.168.1.5:8000") as client:
        assert (await client.get("/sessions")).status_code == expected

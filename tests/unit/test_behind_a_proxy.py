"""What a proxy says of a request: believed only where the operator says so, and only of paths and addresses."""

from __future__ import annotations

import asyncio

import pytest
import uvicorn
from pydantic import ValidationError

from inferapi.cli import serving
from inferapi.settings import Settings

pytestmark = pytest.mark.usefixtures("bare_environment", "root_logger")

PROXY, CLIENT = "10.0.0.2", "203.0.113.9"


@pytest.fixture
def config_of(monkeypatch):
    """The configuration that a server would run with, of settings."""
    made: list[uvicorn.Config] = []
    monkeypatch.setattr(serving.DrainingServer, "run", lambda server: made.append(server.config))

    def serve(**settings) -> uvicorn.Config:
        serving.serve({"device": "cpu", **settings})
        return made[-1]

    return serve


def seen_by_the_app(config: uvicorn.Config, *, sent_by: str) -> tuple[str, str]:
    """Address and scheme after uvicorn's middleware, of a request that names another client and TLS."""
    seen: list[tuple[str, str]] = []

    async def app(scope, receive, send):
        seen.append((scope["client"][0], scope["scheme"]))

    config.app = app
    config.load()
    headers = [(b"x-forwarded-for", CLIENT.encode()), (b"x-forwarded-proto", b"https")]
    scope = {"type": "http", "client": (sent_by, 1), "scheme": "http", "headers": headers, "asgi": {"version": "3.0"}}
    asyncio.run(config.loaded_app(scope, None, None))
    return seen[0]


@pytest.mark.parametrize("sent_by", ["127.0.0.1", "::1", PROXY, CLIENT])
def test_nobody_is_believed_unless_told_otherwise(config_of, monkeypatch, sent_by):
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # uvicorn's own variable
    assert seen_by_the_app(config_of(), sent_by=sent_by) == (sent_by, "http")


@pytest.mark.parametrize("believed", [(PROXY,), ("10.0.0.0/24", "2001:db8::/32")])
def test_a_proxy_that_is_named_is_believed(config_of, believed):
    assert seen_by_the_app(config_of(forwarded_allow_ips=believed), sent_by=PROXY) == (CLIENT, "https")


def test_others_are_not(config_of):
    assert seen_by_the_app(config_of(forwarded_allow_ips=("10.0.1.0/24",)), sent_by=PROXY) == (PROXY, "http")


def test_the_path_of_the_proxy_is_told_to_the_application(config_of):
    assert config_of(root_path="/llm/v2").root_path == "/llm/v2"
    assert config_of().root_path == ""


@pytest.mark.parametrize("path", ["llm", "/", "/llm/", "//llm", "/llm/../x", "/.", "/l lm", "/l?m", "/" + "x" * 256])
def test_a_path_that_no_proxy_can_take_off_is_refused(path):
    with pytest.raises(ValidationError) as caught:
        Settings(root_path=path)
    assert [entry["loc"][0] for entry in caught.value.errors()] == ["root_path"]


@pytest.mark.parametrize("addresses", ['["*"]', '["proxy"]', '["10.0.0.1/8"]', "10.0.0.1", '[""]', "5"])
def test_an_address_that_is_none_is_refused(monkeypatch, addresses):
    monkeypatch.setenv("INFERAPI_FORWARDED_ALLOW_IPS", addresses)
    with pytest.raises(Exception, match="forwarded_allow_ips"):
        Settings()

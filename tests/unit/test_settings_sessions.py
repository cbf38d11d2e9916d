"""Where sessions are kept, and whose they are: settings that hold secrets."""

from __future__ import annotations

import hashlib
import json

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError

from inferapi.settings import Settings

pytestmark = pytest.mark.usefixtures("bare_environment")

PASSWORD = "s3cr3t"
KEY = "k3y-of-ann-0123456789"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()

STORES = [
    "memory://",
    "sqlite:///a.db",
    "sqlite:///folder/a b.db",
    "sqlite:////a/b.db",
    "redis://h",
    "redis://h:6379/0",
    "redis://:pw@h",
    "redis://user:p%40w@h:1/15",
    "redis://[::1]:6379/0",
    "rediss://h",
    "rediss://h:6380/1?ssl_ca_certs=/etc/ssl/own.pem",
]
NO_STORES = [
    "",
    "a.db",
    "memory",
    "memory:",
    "sqlite://",
    "sqlite:///",
    "sqlite:////",
    "sqlite://a.db",
    "sqlite://host/a.db",
    "sqlite:///folder/",
    "redis://",
    "redis:h",
    "redis://:6379",
    f"redis://:{PASSWORD}@",
    f"redis://:{PASSWORD}@h:0",
    f"redis://:{PASSWORD}@h:65536",
    f"redis://:{PASSWORD}@h:port",
    f"redis://:{PASSWORD}/x@h:6379",
    f"redis://:{PASSWORD}#x@h:6379",
    f"redis://:{PASSWORD}@[::1",
    "unix:///run/redis.sock",
    "http://x",
    f"postgresql://user:{PASSWORD}@h/db",
]
MISREAD_STORES = [  # each names something, and something else would be used, or nothing at all
    "sqlite:a.db",
    "sqlite:/a.db",
    "sqlite:///:memory:",
    "sqlite:///..",
    "sqlite:///a%00b",
    f"redis://:{PASSWORD}@h/abc",
    f"redis://:{PASSWORD}@h/0/1",
]


@pytest.mark.parametrize("url", STORES)
def test_a_store_that_is_known_is_taken(url):
    assert Settings(session_store_url=url).session_store_url == url


@pytest.mark.parametrize("url", [*NO_STORES, *MISREAD_STORES])
def test_a_store_that_is_none_is_refused_and_its_url_not_repeated(url):
    with pytest.raises(ValidationError) as caught:
        Settings(session_store_url=url)
    assert [entry["loc"] for entry in caught.value.errors()] == [("session_store_url",)]
    assert PASSWORD not in str(caught.value)
    assert PASSWORD not in repr(caught.value.errors(include_input=False))


def test_the_password_of_a_store_is_not_shown():
    settings = Settings(session_store_url=f"redis://:{PASSWORD}@h")
    assert PASSWORD not in repr(settings) + str(settings)


def test_by_default_sessions_are_in_a_file_of_the_users_own(monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", "/home/ann/data")
    assert Settings().session_store_url == "sqlite:////home/ann/data/inferapi/sessions.db"


def set_keys(monkeypatch, *keys: dict) -> Settings:
    monkeypatch.setenv("INFERAPI_API_KEYS", json.dumps(keys))
    return Settings()


def test_keys_are_read_from_json(monkeypatch):
    ann, bob = set_keys(
        monkeypatch,
        {"id": "ann", "key": KEY},
        {"id": "bob", "sha256": "AB" * 32, "scopes": ["infer", "admin"]},
    ).api_keys
    assert (ann.id, ann.digest.hex(), ann.scopes) == ("ann", DIGEST, {"infer"})
    assert (bob.id, bob.digest.hex(), bob.scopes) == ("bob", "ab" * 32, {"infer", "admin"})


@pytest.mark.parametrize(
    "keys",
    [
        [{"id": "ann"}],
        [{"id": "ann", "key": KEY, "sha256": DIGEST}],
        [{"id": "ann", "key": "k3y-short"}],
        [{"id": "ann", "key": KEY * 30}],
        [{"id": "ann", "key": ""}],
        [{"id": "ann", "sha256": "AB" * 31}],
        [{"id": "ann", "sha256": "xy" * 32}],
        [{"id": "ann", "sha256": ""}],
        [{"id": "", "key": KEY}],
        [{"id": "a b", "key": KEY}],
        [{"id": "a\n", "key": KEY}],
        [{"id": "a" * 65, "key": KEY}],
        [{"key": KEY}],
        [{"id": "ann", "key": KEY, "scopes": ["all"]}],
        [{"id": "ann", "key": KEY, "scope": "admin"}],
        [{"id": "ann", "key": KEY}, {"id": "ann", "key": KEY + "2"}],
        [{"id": "ann", "key": KEY}, {"id": "bob", "key": KEY}],
        [{"id": "ann", "key": KEY}, {"id": "bob", "sha256": DIGEST}],
        [{"id": "ann", "key": [KEY]}],
        [KEY],
        {"ann": KEY},
        KEY,
    ],
)
def test_keys_that_make_no_sense_are_refused_and_not_repeated(monkeypatch, keys):
    monkeypatch.setenv("INFERAPI_API_KEYS", json.dumps(keys))
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert {entry["loc"][0] for entry in caught.value.errors()} == {"api_keys"}
    told = str(caught.value) + repr(caught.value.errors(include_input=False))
    assert "k3y" not in told


@pytest.mark.parametrize("key", [f" {KEY}", f"{KEY} ", f"{KEY}\n", f"{KEY}é", "key with spaces 012345", "\t" * 20])
def test_a_key_that_no_client_could_send_is_refused(monkeypatch, key):
    with pytest.raises(ValidationError):
        set_keys(monkeypatch, {"id": "ann", "key": key})


def test_keys_that_are_no_json_are_refused_and_not_repeated(monkeypatch):
    monkeypatch.setenv("INFERAPI_API_KEYS", f'[{{"id": "ann", "key": "{KEY}"')
    with pytest.raises(SettingsError) as caught:
        Settings()
    assert "api_keys" in str(caught.value)
    assert "k3y" not in str(caught.value)


def test_keys_are_not_shown(monkeypatch):
    settings = set_keys(monkeypatch, {"id": "ann", "key": KEY})
    assert "k3y" not in repr(settings) + str(settings)
    assert "k3y" not in repr(settings.api_keys) + str(settings.api_keys[0])

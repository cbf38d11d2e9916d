from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inferapi.cli import app, serving
from inferapi.settings import Settings

KEYS = json.dumps([{"id": "ann", "key": "k3y-of-ann-0123456789"}])


@pytest.fixture(autouse=True)
def cpu(monkeypatch, bare_environment, root_logger):
    monkeypatch.setenv("INFERAPI_DEVICE", "cpu")


def serve(*options: str):
    return CliRunner().invoke(app, ["serve", *options], env={"COLUMNS": "200"})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_it_refuses_to_bind_beyond_loopback_without_being_told_to(host):
    result = serve("--host", host)
    assert result.exit_code == 2
    assert f"Refusing to bind {host}" in result.stderr
    assert "INFERAPI_API_KEYS" in result.stderr
    assert "INFERAPI_ALLOW_ANONYMOUS=true" in result.stderr


def test_it_refuses_a_host_of_the_environment_the_same_way(monkeypatch):
    monkeypatch.setenv("INFERAPI_HOST", "0.0.0.0")
    result = serve()
    assert (result.exit_code, "Refusing to bind 0.0.0.0" in result.stderr) == (2, True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("INFERAPI_PORT", "http"),
        ("INFERAPI_INACTIVITY_THRESHOLD_S", "0"),
        ("INFERAPI_DTYPE", "int3"),
        ("INFERAPI_SESSION_STORE_URL", "http://user:secret@host"),
        ("INFERAPI_SESSION_STORE_URL", "redis://user:secret@host:port"),
        ("INFERAPI_API_KEYS", '[{"id": "ann", "key": "secret"}]'),
        ("INFERAPI_API_KEYS", '[{"id": "ann", "key": "secret-0123456789", "sha256": "secret"}]'),
        ("INFERAPI_API_KEYS", '[{"id": "ann", "key": "secret-0123456789"'),
        ("INFERAPI_ALLOWED_MODELS", "5"),
        ("INFERAPI_ALLOWED_MODELS", '["gpt2", 5]'),
        ("INFERAPI_ALLOWED_MODELS", "gpt2"),  # no JSON at all
    ],
)
def test_a_bad_setting_is_named_and_ends_it_with_status_2(monkeypatch, name, text):
    monkeypatch.setenv(name, text)
    result = serve()
    assert result.exit_code == 2
    assert name.removeprefix("INFERAPI_").lower() in result.stderr.lower()
    assert "Traceback" not in result.output
    assert "secret" not in result.output


@pytest.fixture
def served(monkeypatch) -> list[tuple[str, int]]:
    """The addresses that a server would have been run on."""
    addresses: list[tuple[str, int]] = []

    def run(server: serving.DrainingServer) -> None:
        addresses.append((server.config.host, server.config.port))

    monkeypatch.setattr(serving.DrainingServer, "run", run)
    return addresses


@pytest.mark.parametrize(
    "settings", [{"INFERAPI_API_KEYS": KEYS}, {"INFERAPI_ALLOW_ANONYMOUS": "true"}], ids=["keys", "told to"]
)
def test_it_binds_beyond_loopback_with_keys_or_when_told_to(monkeypatch, served, settings):
    for name, text in settings.items():
        monkeypatch.setenv(name, text)
    result = serve("--host", "0.0.0.0", "--port", "8001")
    assert (result.exit_code, result.stderr, served) == (0, "", [("0.0.0.0", 8001)])
    assert "k3y" not in result.output


@pytest.mark.parametrize(("keys", "named"), [(KEYS, True), ("[]", False)])
def test_what_it_says_to_try_works_with_keys_and_without(monkeypatch, served, keys, named):
    monkeypatch.setenv("INFERAPI_API_KEYS", keys)
    monkeypatch.setenv("INFERAPI_LOG_FORMAT", "text")
    result = serve()
    assert "curl -s http://127.0.0.1:8000/chat" in result.stdout
    assert ("Authorization: Bearer" in result.stdout) is named


def test_an_empty_list_of_keys_is_none(monkeypatch, served):
    monkeypatch.setenv("INFERAPI_API_KEYS", "[]")
    assert (serve("--host", "0.0.0.0").exit_code, served) == (2, [])
    assert (serve().exit_code, served) == (0, [("127.0.0.1", 8000)])


@pytest.mark.parametrize("options", ["socket_timeout=soon", "db=x", "unknown=1"])
def test_a_store_whose_options_make_no_sense_ends_it_with_status_2(monkeypatch, served, options):
    monkeypatch.setenv("INFERAPI_SESSION_STORE_URL", f"redis://:secret@host?{options}")
    result = serve()
    assert (result.exit_code, served) == (2, [])
    assert "INFERAPI_SESSION_STORE_URL" in result.stderr
    assert "secret" not in result.output


@pytest.mark.parametrize(("option", "value"), [("--port", "65536"), ("--port", "http"), ("--model", "../x")])
def test_a_bad_option_ends_it_with_status_2(option, value):
    result = serve(option, value)
    assert result.exit_code == 2
    assert result.stderr
    assert "Traceback" not in result.output


def test_a_gpu_that_was_asked_for_and_is_not_there_ends_it_with_status_2(monkeypatch):
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        monkeypatch.setenv("INFERAPI_DEVICE", "cuda")
        result = serve()
        assert (result.exit_code, "no NVIDIA GPU answers" in result.stderr) == (2, True)
    else:
        pytest.skip("there is a GPU")


def test_help_lists_every_setting():
    result = serve("--help")
    assert result.exit_code == 0
    missing = [name for name in Settings.model_fields if f"INFERAPI_{name.upper()}" not in result.output]
    assert missing == []


def test_help_says_where_sessions_are_kept_without_naming_a_folder_of_this_machine():
    output = " ".join(serve("--help").output.replace("\u2502", " ").split())
    assert "Default: a SQLite file in your data folder." in output
    assert str(Path.home()) not in output
    assert "PydanticUndefined" not in output
    assert "default_factory" not in output


def test_without_a_command_it_shows_its_help():
    result = CliRunner().invoke(app, [])
    assert "serve" in result.output
    assert result.exit_code == 2

from __future__ import annotations

import os

import pytest
from typer.testing import CliRunner

from inferapi.cli import app
from inferapi.settings import Settings


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, root_logger):
    for name in [name for name in os.environ if name.upper().startswith("INFERAPI_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("INFERAPI_DEVICE", "cpu")


def serve(*options: str):
    return CliRunner().invoke(app, ["serve", *options], env={"COLUMNS": "200"})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_it_refuses_to_bind_beyond_loopback_without_being_told_to(host):
    result = serve("--host", host)
    assert result.exit_code == 2
    assert f"Refusing to bind {host}" in result.stderr
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
        ("INFERAPI_SESSION_STORE_URL", "redis://user:secret@host"),
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


def test_without_a_command_it_shows_its_help():
    result = CliRunner().invoke(app, [])
    assert "serve" in result.output
    assert result.exit_code == 2

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

from inferapi.cli import app, serving
from inferapi.main import create, several_processes


@pytest.fixture(autouse=True)
def cpu(monkeypatch, bare_environment, root_logger):
    monkeypatch.setenv("INFERAPI_DEVICE", "cpu")
    monkeypatch.setattr(serving.DrainingServer, "run", lambda _: None)


@pytest.mark.parametrize("told", ["2", "16", " 4 ", "auto", "-1"])
def test_more_than_one_process_is_refused_by_the_name_of_the_variable(told):
    reason = several_processes({"WEB_CONCURRENCY": told}, None)
    assert reason is not None
    assert reason.startswith(f"WEB_CONCURRENCY is {told.strip()!r}")
    assert "memory" in reason


@pytest.mark.parametrize("environ", [{}, {"WEB_CONCURRENCY": ""}, {"WEB_CONCURRENCY": "1"}, {"WEB_CONCURRENCY": "0"}])
def test_one_process_is_fine(environ):
    assert several_processes(environ, None) is None


def test_the_option_goes_before_the_variable():
    assert several_processes({"WEB_CONCURRENCY": "4"}, "1") is None
    assert (several_processes({"WEB_CONCURRENCY": "1"}, "4") or "").startswith("--workers is '4'")


@pytest.mark.parametrize(
    "argv",
    [
        ["/bin/uvicorn", "inferapi.main:create", "--factory", "--workers", "2"],
        ["/bin/uvicorn", "--workers=2", "inferapi.main:create"],
        ["/lib/uvicorn/__main__.py", "--workers", "1", "--workers", "2"],
        ["gunicorn", "-w", "2", "inferapi.main:create()"],
        ["gunicorn", "-w2"],
    ],
)
def test_an_application_that_would_be_one_of_several_does_not_start(monkeypatch, capsys, argv):
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as ended:
        create()
    assert ended.value.code == 3  # at which uvicorn and gunicorn do not try again
    assert capsys.readouterr().err.startswith("--workers is '2'")


@pytest.mark.parametrize("argv", [["/bin/pytest", "--workers", "2"], ["uvicorn", "--workers", "1"], ["uvicorn"], []])
def test_options_of_other_programs_are_their_own(monkeypatch, argv):
    monkeypatch.setattr(sys, "argv", argv)
    assert create().title == "inferapi"


def test_serve_refuses_more_workers_and_says_why():
    result = CliRunner().invoke(app, ["serve", "--workers", "2"])
    assert result.exit_code == 2
    assert result.stderr.startswith("--workers is '2'")


def test_serve_refuses_the_variable_and_takes_a_single_worker(monkeypatch):
    monkeypatch.setenv("WEB_CONCURRENCY", "2")
    refused = CliRunner().invoke(app, ["serve"])
    assert (refused.exit_code, refused.stderr.startswith("WEB_CONCURRENCY is '2'")) == (2, True)
    assert CliRunner().invoke(app, ["serve", "--workers", "1"]).exit_code == 0

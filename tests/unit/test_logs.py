from __future__ import annotations

import io
import json
import logging
import sys
from typing import NoReturn

import pytest

from inferapi.logs import JsonFormatter, TextFormatter, configure_logging, on_behalf_of, origin, request_id

HOSTILE = [
    'plain "quoted" \\ text',
    "a\nb",
    "a\r\nb",
    'a"}\n{"level": "critical", "message": "forged"}',
    "\x00\x1b[31mred\x1b[0m\x7f",
    "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g",
    "é 漢字 🙂",
    "lone \ud800 surrogate",
    "%s %d %(name)s {0}",
]


def record(message: str, *args: object, **changes: object) -> logging.LogRecord:
    made = logging.LogRecord("inferapi.test", logging.WARNING, __file__, 1, message, args, None)
    made.__dict__.update(changes)
    return made


@pytest.mark.parametrize("text", HOSTILE)
def test_a_record_is_one_json_object_on_one_line(text):
    line = JsonFormatter().format(record("path %r of %s", text, text))
    assert "\n" not in line
    assert "\r" not in line
    assert json.loads(line)["message"] == f"path {text!r} of {text}"


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("formatter", [JsonFormatter, TextFormatter])
def test_a_line_can_be_written_as_utf8_whatever_a_client_wrote(formatter, text):
    line = formatter().format(record("%s", text))
    assert line.encode()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_record_is_one_line_of_text_without_control_characters(text):
    line = TextFormatter().format(record("%s", text))
    assert len(line.splitlines()) == 1
    assert line.isprintable()


@pytest.mark.parametrize("forged", [*HOSTILE, "12:00:00 CRITICAL forged", "a\n12:00:00 CRITICAL forged\n\nb"])
def test_no_line_of_an_exception_looks_like_a_line_of_its_own(forged):
    def fail() -> NoReturn:
        raise ValueError(f"{forged}\n{forged}")

    try:
        fail()
    except ValueError as error:
        error.add_note(forged)
        made = record("it broke", exc_info=sys.exc_info())
        made.exc_text = "12:00:00 CRITICAL as another formatter left it"
        made.stack_info = f"Stack:\n{forged}"
        first, *others = TextFormatter().format(made).split("\n")
    assert first.endswith("WARNING it broke")
    assert "Traceback (most recent call last):" in others[0]
    assert [line for line in others if not (line.startswith("    ") and line.isprintable())] == []
    assert not any("as another formatter left it" in line for line in others)


def test_a_json_line_tells_when_where_how_bad_and_for_whom():
    token = request_id.set("abc")
    try:
        line = json.loads(JsonFormatter().format(record("n = %d", 5, created=1_700_000_000.25)))
    finally:
        request_id.reset(token)
    assert line == {
        "time": "2023-11-14T22:13:20.250+00:00",
        "level": "warning",
        "logger": "inferapi.test",
        "message": "n = 5",
        "request_id": "abc",
    }


def test_an_exception_stays_inside_its_line():
    try:
        int("first\nsecond")
    except ValueError:
        line = JsonFormatter().format(record("it broke", exc_info=sys.exc_info()))
    assert "\n" not in line
    told = json.loads(line)
    assert "request_id" not in told
    assert told["exception"].endswith(r"'first\nsecond'")


@pytest.mark.parametrize("as_text", [True, False])
def test_every_logger_writes_to_stdout_at_the_level_that_was_set(root_logger, capsys, as_text):
    configure_logging("warning", as_text=as_text)
    logging.getLogger("inferapi.access").info("not this")
    logging.getLogger("uvicorn.error").warning("but\nthis")
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (1, "")
    assert "this" in out
    assert "not" not in out


@pytest.mark.parametrize("client", ["httpx", "httpcore", "httpx2", "httpcore2", "huggingface_hub"])
@pytest.mark.parametrize("level", ["info", "debug"])
def test_the_http_client_of_the_hub_tells_no_addresses(root_logger, capsys, client, level):
    configure_logging(level, as_text=False)
    logging.getLogger(client).info("GET https://huggingface.co/private")
    logging.getLogger("inferapi").info("kept")
    assert [json.loads(line)["message"] for line in io.StringIO(capsys.readouterr().out)] == ["kept"]


def test_fields_of_a_record_are_members_and_change_none_of_the_lines_own():
    fields = {"status": 200, "level": "critical", "route": "a\nb"}
    line = JsonFormatter().format(record("done", fields=fields))
    assert "\n" not in line
    told = json.loads(line)
    assert (told["status"], told["level"], told["route"]) == (200, "warning", "a\nb")


def test_work_on_behalf_of_a_request_is_told_as_the_requests():
    with on_behalf_of(("abc", "def")):
        assert origin() == ("abc", "def")
        inside = json.loads(JsonFormatter().format(record("x")))
    outside = json.loads(JsonFormatter().format(record("x")))
    assert (inside["request_id"], inside["trace_id"]) == ("abc", "def")
    assert origin() == (None, None)
    assert outside.keys() & {"request_id", "trace_id"} == set()

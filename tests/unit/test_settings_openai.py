from __future__ import annotations

import pytest
from pydantic import ValidationError

from inferapi.settings import Settings

pytestmark = pytest.mark.usefixtures("bare_environment")


def test_parameters_are_refused_and_writes_have_half_a_minute_unless_told_otherwise():
    assert (Settings().lenient_params, Settings().stream_write_timeout_s) == (False, 30.0)


@pytest.mark.parametrize(
    ("name", "text", "expected"), [("lenient_params", "true", True), ("stream_write_timeout_s", "2.5", 2.5)]
)
def test_a_setting_is_read_from_the_environment(monkeypatch, name, text, expected):
    monkeypatch.setenv(f"INFERAPI_{name.upper()}", text)
    assert getattr(Settings(), name) == expected


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "86401"])
def test_a_time_to_write_that_makes_no_sense_is_refused(monkeypatch, text):
    monkeypatch.setenv("INFERAPI_STREAM_WRITE_TIMEOUT_S", text)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert [entry["loc"][0] for entry in caught.value.errors()] == ["stream_write_timeout_s"]

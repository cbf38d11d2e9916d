from __future__ import annotations

import pytest
from pydantic import ValidationError

from inferapi.settings import Settings


@pytest.fixture(autouse=True)
def bare(bare_environment):
    """No setting of whoever runs the tests."""


def test_telemetry_goes_nowhere_unless_told(monkeypatch):
    assert Settings().otel_endpoint is None
    monkeypatch.setenv("INFERAPI_OTEL_ENDPOINT", "")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    assert Settings().otel_endpoint is None


def test_the_standard_variable_counts_where_ours_says_nothing(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://standard:4318/")
    assert Settings().otel_endpoint == "http://standard:4318"
    monkeypatch.setenv("INFERAPI_OTEL_ENDPOINT", "https://ours:4318/otlp/")
    assert Settings().otel_endpoint == "https://ours:4318/otlp"


@pytest.mark.parametrize("name", ["INFERAPI_OTEL_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"])
@pytest.mark.parametrize(
    "url",
    [
        *("localhost:4318", "grpc://host:4317", "http://", "http://:4318", "http://host:port", "http://host:0"),
        *("http://host:99999", "http://[host", "http://user:secret@host?x=1", "http://host:4318#x"),
    ],
)
def test_what_is_no_collector_is_refused_without_repeating_it(monkeypatch, name, url):
    monkeypatch.setenv(name, url)
    with pytest.raises(ValidationError) as refused:
        Settings()
    assert "http://host:port" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_the_address_is_not_shown_with_the_settings(monkeypatch):
    monkeypatch.setenv("INFERAPI_OTEL_ENDPOINT", "http://user:secret@host:4318")
    assert "secret" not in repr(Settings())

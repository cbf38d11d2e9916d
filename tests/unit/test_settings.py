from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from inferapi.domain.model import Quantization
from inferapi.settings import Settings

pytestmark = pytest.mark.usefixtures("bare_environment")


def test_the_defaults_are_those_of_the_manual():
    settings = Settings()
    assert (settings.host, settings.port, settings.model) == ("127.0.0.1", 8000, None)
    assert (settings.models_dir, settings.allowed_models) == (Path("models"), ("*",))
    assert (settings.device, settings.dtype, settings.quantization) == ("auto", "auto", None)
    assert settings.memory_budget_bytes is None
    assert (settings.max_resident_models, settings.inactivity_threshold_s) == (1, 300)
    assert (settings.session_ttl_s, settings.system_prompt) == (604_800, "You are a helpful assistant.")
    assert (settings.session_max_turns, settings.session_max_bytes) == (1000, 4_194_304)
    assert (settings.session_wait_s, settings.session_lease_s, settings.api_keys) == (9.0, 8.0, ())
    assert (settings.max_batch, settings.max_queue, settings.max_new_tokens) == (32, 64, 4096)
    assert (settings.max_body_bytes, settings.request_timeout_s, settings.drain_timeout_s) == (1_048_576, 300.0, 30.0)
    assert (settings.receive_timeout_s, settings.max_connections) == (30.0, 512)
    assert (settings.allow_anonymous, settings.log_level) == (False, "info")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("host", "0.0.0.0", "0.0.0.0"),
        ("port", "0", 0),
        ("model", "org/name@v1", "org/name@v1"),
        ("models_dir", "/srv/models", Path("/srv/models")),
        ("allowed_models", '["gpt2", "org/*"]', ("gpt2", "org/*")),
        ("allowed_models", "[]", ()),
        ("device", "cpu", "cpu"),
        ("dtype", "float32", "float32"),
        ("quantization", "int8", Quantization.INT8),
        ("quantization", "int4", Quantization.INT4),
        ("quantization", "", None),
        ("memory_budget_bytes", "4000000000", 4_000_000_000),
        ("inactivity_threshold_s", "-1", -1),
        ("inactivity_threshold_s", "1", 1),
        ("max_queue", "0", 0),
        ("temperature", "0", 0.0),
        ("request_timeout_s", "1.5", 1.5),
        ("allow_anonymous", "true", True),
        ("log_format", "text", "text"),
        ("model", "", None),
    ],
)
def test_a_setting_is_read_from_the_environment(monkeypatch, name, text, expected):
    monkeypatch.setenv(f"INFERAPI_{name.upper()}", text)
    assert getattr(Settings(), name) == expected


def test_an_argument_goes_before_the_environment(monkeypatch):
    monkeypatch.setenv("INFERAPI_PORT", "1")
    assert Settings(port=2).port == 2


def test_settings_do_not_change():
    with pytest.raises(ValidationError):
        Settings().port = 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("port", "65536"),
        ("port", "-1"),
        ("port", "http"),
        ("device", "tpu"),
        ("dtype", "int8"),
        ("quantization", "int3"),
        ("quantization", "INT8"),
        ("memory_budget_bytes", "0"),
        ("memory_budget_bytes", "4GB"),
        ("max_resident_models", "0"),
        ("inactivity_threshold_s", "0"),
        ("inactivity_threshold_s", "-2"),
        ("inactivity_threshold_s", "1.5"),
        ("session_store_url", "http://localhost"),
        ("session_ttl_s", "0"),
        ("session_max_turns", "0"),
        ("session_max_turns", "100001"),
        ("session_max_bytes", "4095"),
        ("session_max_bytes", "268435457"),
        ("session_lease_s", "0.9"),
        ("session_lease_s", "inf"),
        ("session_wait_s", "0"),
        ("log_level", "loud"),
        ("log_format", "xml"),
        ("max_batch", "0"),
        ("max_batch", "1025"),
        ("max_queue", "-1"),
        ("max_new_tokens", "0"),
        ("temperature", "-0.1"),
        ("temperature", "nan"),
        ("max_body_bytes", "0"),
        ("receive_timeout_s", "0"),
        ("receive_timeout_s", "nan"),
        ("max_connections", "0"),
        ("max_connections", "100001"),
        ("request_timeout_s", "0"),
        ("request_timeout_s", "nan"),
        ("request_timeout_s", "inf"),
        ("drain_timeout_s", "-1"),
        ("drain_timeout_s", "inf"),
        ("session_wait_s", "inf"),
        ("threads", "0"),
        ("system_prompt", "x" * 65_537),
        ("allow_anonymous", "perhaps"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(monkeypatch, name, text):
    monkeypatch.setenv(f"INFERAPI_{name.upper()}", text)
    with pytest.raises(ValidationError) as caught:
        Settings()
    assert [entry["loc"][0] for entry in caught.value.errors()] == [name]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("example.org", False),
        ("127.0.0.1.example.org", False),
        ("", False),
    ],
)
def test_only_loopback_is_loopback(host, expected):
    assert Settings(host=host).is_loopback is expected


@pytest.mark.parametrize(("chosen", "expected"), [("json", False), ("text", True)])
def test_the_log_format_is_as_chosen(chosen, expected):
    assert Settings(log_format=chosen).logs_as_text is expected


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_every_setting_is_described_in_a_line(name):
    description = Settings.model_fields[name].description
    assert description.endswith(".")
    assert "\n" not in description

"""What workers, which read strangers' files, are given of the server's environment."""

from __future__ import annotations

import pytest

from inferapi.worker.fork_server_process import _environment


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", "hf_x"),
        ("hugging_face_hub_token", "hf_x"),
        ("OPENAI_API_KEY", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("PGPASSWORD", "x"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=x"),
        ("INFERAPI_API_KEYS", "[]"),
        ("INFERAPI_SESSION_STORE_URL", "redis://host/0"),
        ("INFERAPI_PORT", "8000"),
        ("REDIS_URL", "redis://:x@host/0"),
        ("HTTPS_PROXY", "http://somebody:x@proxy:3128"),
    ],
)
def test_they_get_no_secret_and_no_setting(name, value):
    assert name not in _environment({name: value, "PATH": "/bin"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PATH", "/usr/bin:/bin"),
        ("CXX", "g++"),
        ("XDG_CACHE_HOME", "/home/somebody/.cache"),
        ("CUDA_VISIBLE_DEVICES", "0,1"),
        ("HTTPS_PROXY", "http://proxy:3128"),
        ("LD_PRELOAD", "/usr/lib/libjemalloc.so.2"),
    ],
)
def test_they_get_what_a_computation_may_need(name, value):
    assert _environment({name: value})[name] == value


def test_they_are_told_to_stay_offline():
    assert _environment({"HF_HUB_OFFLINE": "0"})["HF_HUB_OFFLINE"] == "1"

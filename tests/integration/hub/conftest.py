"""A stub hub on loopback, a good model to serve, and a machine with an empty cache."""

import logging
import os

import pytest
from huggingface_hub import constants

from hub_side import Side, write_model
from stub_hub import StubHub


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """Online, nobody's token, and a hub that is silent for two seconds is too slow."""
    for name in [name for name in os.environ if name.startswith(("HF_", "HUGGING_FACE_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_ETAG_TIMEOUT", "2")
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "2")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 2)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    logging.getLogger("huggingface_hub").setLevel("CRITICAL")


@pytest.fixture
def give_token(monkeypatch):
    """What the operator does; ``None`` takes it away."""

    def give(token):
        if token is None:
            monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        else:
            monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", token)

    return give


@pytest.fixture
def hub():
    stub = StubHub()
    yield stub
    stub.close()


@pytest.fixture
def source(tmp_path):
    return write_model(tmp_path / "source")


@pytest.fixture
def here(tmp_path, hub):
    return Side(tmp_path, hub.url)

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fastapi import FastAPI

from inferapi.application.lifecycle import ModelLifecycle
from inferapi.application.policy import LifecyclePolicy
from inferapi.container import Container, make_policy
from inferapi.domain.errors import ModelNameInvalid
from inferapi.domain.model import LoadOptions, ModelRef
from inferapi.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(device="cpu", models_dir=tmp_path)


@pytest.mark.parametrize("name", sorted(Container.providers))
def test_every_provider_builds(settings, name):
    container = Container(settings=settings)
    assert getattr(container, name)() is not None


def test_what_holds_state_is_built_once(settings):
    container = Container(settings=settings)
    app, lifecycle = container.app(), container.lifecycle()
    assert isinstance(app, FastAPI)
    assert isinstance(lifecycle, ModelLifecycle)
    assert container.app() is app
    assert container.lifecycle() is lifecycle


def test_the_policy_is_what_the_operator_decided(settings):
    decided = {
        "max_resident_models": 3,
        "inactivity_threshold_s": 7,
        "drain_timeout_s": 8.0,
        "memory_budget_bytes": 9,
        "allowed_models": ("gpt2",),
        "max_batch": 10,
        "max_queue": 11,
        "threads": 12,
    }
    more = {"request_timeout_s": 13.0, "dtype": "float16", "model": "org/name@v1"}
    assert make_policy(settings.model_copy(update=decided | more)) == LifecyclePolicy(
        **decided,
        load_wait_s=13.0,
        default_options=LoadOptions("float16"),
        preload=ModelRef("org/name", "v1"),
    )


def test_a_model_to_load_at_start_must_have_a_name(settings):
    with pytest.raises(ModelNameInvalid):
        Container(settings=settings.model_copy(update={"model": "../x"})).app()


def test_the_process_that_serves_http_never_imports_torch(tmp_path):
    code = (
        "import sys, inferapi.main\n"
        "from inferapi.settings import Settings\n"
        f"app = inferapi.main.create(Settings(device='cpu', models_dir={str(tmp_path)!r}))\n"
        "paths = app.openapi()['paths']\n"
        "heavy = [name for name in ('torch', 'transformers', 'inferapi.engine', 'numpy') if name in sys.modules]\n"
        "print('/infer' in paths, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "True []\n"

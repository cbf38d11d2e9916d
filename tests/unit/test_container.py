from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from inferapi.adapters.memory_sessions import MemorySessionStore
from inferapi.adapters.otel_engines import TracedLauncher
from inferapi.adapters.otel_tracing import OtelTracing
from inferapi.adapters.redis_sessions import RedisSessionStore
from inferapi.adapters.sqlite_sessions import SqliteSessionStore
from inferapi.adapters.system_clock import SystemClock
from inferapi.application.lifecycle import ModelLifecycle
from inferapi.application.policy import LifecyclePolicy, SessionPolicy
from inferapi.container import (
    Container,
    TelemetryError,
    make_policy,
    make_session_policy,
    make_session_store,
    make_tracing,
)
from inferapi.domain.chat import SessionLimits
from inferapi.domain.errors import ModelNameInvalid
from inferapi.domain.model import LoadOptions, ModelRef, Quantization
from inferapi.domain.tracing import Untraced
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
    more = {"request_timeout_s": 13.0, "dtype": "float16", "quantization": Quantization.INT8, "model": "org/name@v1"}
    assert make_policy(settings.model_copy(update=decided | more)) == LifecyclePolicy(
        **decided,
        load_wait_s=13.0,
        default_options=LoadOptions("float16", Quantization.INT8),
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


@pytest.mark.parametrize(
    ("url", "store"),
    [
        ("memory://", MemorySessionStore),
        ("sqlite:///a.db", SqliteSessionStore),
        ("redis://h:6379/0", RedisSessionStore),
        ("rediss://:pw@h", RedisSessionStore),
        ("SQLITE:///a.db", SqliteSessionStore),
        ("REDIS://h", RedisSessionStore),
    ],
)
async def test_sessions_are_kept_where_the_url_says(settings, monkeypatch, tmp_path, url, store):
    monkeypatch.chdir(tmp_path)
    container = Container(settings=Settings(device="cpu", models_dir=tmp_path, session_store_url=url))
    assert type(container.session_store()) is store
    await container.session_store().aclose()
    assert list(tmp_path.iterdir()) == []  # nothing is opened before it is used


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///a.db", "work/a.db"),
        ("sqlite:///sub/a%20b.db", "work/sub/a b.db"),
        ("sqlite:///{folder}/abs.db", "abs.db"),
        ("sqlite:///a?b#c.db", "work/a?b#c.db"),
    ],
)
async def test_a_file_is_where_its_url_says(monkeypatch, tmp_path, url, path):
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    store = make_session_store(Settings(session_store_url=url.format(folder=tmp_path)), SystemClock())
    await store.set_system_prompt("Be brief.")
    await store.aclose()
    assert (tmp_path / path).is_file()


async def test_the_default_file_is_where_the_users_data_is_whatever_the_folder_is_called(monkeypatch, tmp_path):
    folder = tmp_path / "50%41 #?é data"
    monkeypatch.setenv("XDG_DATA_HOME", str(folder))
    monkeypatch.delenv("INFERAPI_SESSION_STORE_URL", raising=False)
    store = make_session_store(Settings(), SystemClock())
    await store.set_system_prompt("Be brief.")
    await store.aclose()
    assert (folder / "inferapi" / "sessions.db").is_file()


def test_the_session_policy_is_what_the_operator_decided(settings):
    decided = {
        "system_prompt": "Be kind.",
        "session_wait_s": 1.5,
        "session_lease_s": 2.5,
        "session_max_turns": 3,
        "session_max_bytes": 4096,
    }
    policy = make_session_policy(settings.model_copy(update=decided))
    assert policy == SessionPolicy("Be kind.", wait_s=1.5, lease_s=2.5, limits=SessionLimits(3, 4096))


async def test_keys_of_the_settings_are_asked_for(tmp_path):
    key = "k3y-of-ann-0123456789"
    keys = ({"id": "ann", "key": key},)
    settings = Settings(device="cpu", models_dir=tmp_path, session_store_url="memory://", api_keys=keys)
    app = Container(settings=settings).app()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        asked = [{}, {"Authorization": f"Bearer {key}"}, {"Authorization": f"Bearer {key}x"}]
        answers = [(await client.get("/sessions", headers=headers)).status_code for headers in asked]
    assert answers == [401, 200, 401]


def test_without_a_collector_nothing_is_traced_and_engines_are_as_they_were(settings):
    container = Container(settings=settings)
    assert isinstance(container.tracing(), Untraced)
    assert container.traced_launcher() is container.launcher()


async def test_with_a_collector_requests_and_engines_are_traced(settings):
    container = Container(settings=settings.model_copy(update={"otel_endpoint": "http://127.0.0.1:9"}))
    tracing = container.tracing()
    assert isinstance(tracing, OtelTracing)
    assert isinstance(container.traced_launcher(), TracedLauncher)
    await tracing.aclose()


def test_a_collector_without_the_libraries_for_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "inferapi.adapters.otel_tracing", None)
    with pytest.raises(TelemetryError, match=r"pip install 'inferapi\[otel\]'"):
        make_tracing(Settings(otel_endpoint="http://127.0.0.1:9"), SystemClock())


def test_a_collector_that_all_programs_are_told_of_is_left_out_without_the_libraries(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "inferapi.adapters.otel_tracing", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert isinstance(make_tracing(Settings(), SystemClock()), Untraced)
    assert "pip install 'inferapi[otel]'" in caplog.text


def test_a_variable_of_the_libraries_that_is_no_good_is_told_as_such(monkeypatch):
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "0")
    with pytest.raises(TelemetryError, match="OTEL_"):
        make_tracing(Settings(otel_endpoint="http://127.0.0.1:9"), SystemClock())

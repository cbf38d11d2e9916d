"""The real adapters keep the contracts of their ports: worker processes, the host's memory, the clock, models."""

import asyncio
import os
import signal
from dataclasses import replace

import psutil
import pytest
import pytest_asyncio
from live_server import TINY, has_ended

from contracts import (
    ClockContract,
    EngineLauncherContract,
    GpuProbeContract,
    ModelRepositoryContract,
    TextEngineContract,
    ask,
    ask_for_long,
    listen,
    unheard,
    until,
)
from inferapi.adapters.host_memory import HostMemoryProbe
from inferapi.adapters.system_clock import SystemClock
from inferapi.adapters.transformers_repository import TransformersRepository
from inferapi.domain.errors import ModelCrashed, ModelInvalid
from inferapi.domain.model import DeviceKind, EngineSpec, ModelRef
from inferapi.worker.launcher import ForkServerLauncher

pytestmark = pytest.mark.model  # the tiny model speaks its tokens

# A fork server takes seconds to import torch: the tests of this module share one, and so one event loop.
shared = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fork_server():
    launcher = ForkServerLauncher()
    yield launcher
    await launcher.aclose()


@pytest.fixture
def tiny_spec(models_dir):
    return EngineSpec(TINY, str(models_dir / TINY), DeviceKind.CPU, 1, "float32", 2048, 2, 1, threads=1)


@pytest.fixture
def misfit_spec(tiny_spec, models_dir):
    return replace(tiny_spec, model="tiny/misfit", path=str(models_dir / "tiny" / "misfit"))


def workers():
    """The processes of this module's engines, as the operating system sees them."""
    mine = [child for child in psutil.Process().children() if "inferapi.worker.forkserver" in child.cmdline()]
    return [worker for fork_server in mine for worker in fork_server.children()]


@shared
class TestWorkerEngine(TextEngineContract):
    @pytest_asyncio.fixture(loop_scope="module")
    async def engine(self, fork_server, tiny_spec):
        engine = await fork_server.launch(tiny_spec, unheard)
        yield engine
        await engine.aclose()


@shared
class TestForkServerLauncher(EngineLauncherContract):
    # Not the contract's own: those of this module.
    @pytest.fixture
    def launcher(self, fork_server):
        return fork_server

    @pytest.fixture
    def spec(self, tiny_spec):
        return tiny_spec

    @pytest.fixture
    def broken_spec(self, misfit_spec):
        return misfit_spec


class TestHostMemoryProbe(GpuProbeContract):
    @pytest.fixture
    def probe(self):
        return HostMemoryProbe()


class TestSystemClock(ClockContract):
    @pytest.fixture
    def clock(self):
        return SystemClock()

    async def pass_time(self, clock, duration_s):
        await asyncio.sleep(duration_s)


class TestTransformersRepository(ModelRepositoryContract):
    @pytest.fixture
    def repository(self, models_dir, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        return TransformersRepository(models_dir)

    @pytest.fixture
    def known(self):
        return ModelRef(TINY)


@shared
async def test_an_engine_whose_worker_is_killed_says_that_it_crashed_and_stays_so(fork_server, tiny_spec):
    before = workers()
    engine = await fork_server.launch(tiny_spec, unheard)
    (worker,) = set(workers()) - set(before)
    answering = engine.generate(ask_for_long(engine))
    await anext(answering)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(ModelCrashed):
        async for _ in answering:
            pass
    await asyncio.wait_for(engine.wait_closed(), 10)
    assert engine.is_closed
    with pytest.raises(ModelCrashed):
        await listen(engine, ask())
    await until(lambda: has_ended(worker))
    await engine.aclose()


@shared
async def test_a_broken_model_is_told_by_its_name_and_leaves_no_process(fork_server, misfit_spec):
    before = workers()
    with pytest.raises(ModelInvalid, match="tiny/misfit"):
        await fork_server.launch(misfit_spec, unheard)
    assert set(workers()) <= set(before)


@shared
async def test_closing_an_engine_waits_until_its_process_has_gone(fork_server, tiny_spec):
    before = workers()
    engine = await fork_server.launch(tiny_spec, unheard)
    (worker,) = set(workers()) - set(before)
    await engine.aclose()
    assert not psutil.pid_exists(worker.pid)


@shared
async def test_a_cancelled_launch_leaves_no_process(fork_server, tiny_spec):
    await fork_server.start()
    before = workers()
    launching = asyncio.create_task(fork_server.launch(tiny_spec, unheard))
    await until(lambda: len(workers()) > len(before) or launching.done())
    launching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await launching
    assert set(workers()) <= set(before)


@shared
async def test_an_engine_can_be_closed_after_its_launcher(fork_server, tiny_spec):
    engine = await fork_server.launch(tiny_spec, unheard)
    await fork_server.aclose()
    await asyncio.wait_for(engine.aclose(), 20)
    assert engine.is_closed
    assert workers() == []


@shared
async def test_workers_know_no_secret_of_the_server(fork_server, tiny_spec, monkeypatch):
    await fork_server.aclose()
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_canary")
    monkeypatch.setenv("INFERAPI_API_KEYS", "canary")
    monkeypatch.setenv("INFERAPI_SESSION_STORE_URL", "rediss://host/0?canary")
    monkeypatch.setenv("HTTPS_PROXY", "http://somebody:canary@proxy:3128")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=canary")
    engine = await fork_server.launch(tiny_spec, unheard)
    (worker,) = workers()
    environment = worker.environ()
    await engine.aclose()
    assert "canary" not in str(environment)
    assert environment["HF_HUB_OFFLINE"] == "1"

"""The fakes keep the contracts of their ports, and memory is a real adapter that needs no other service."""

from __future__ import annotations

import pytest

from contracts import (
    ClockContract,
    EngineLauncherContract,
    GpuProbeContract,
    ModelRepositoryContract,
    TextEngineContract,
)
from fakes import (
    FakeClock,
    FakeEngineLauncher,
    FakeGpuProbe,
    FakeModelRepository,
    FlakySessionStore,
    ScriptedEngine,
    make_profile,
)
from inferapi.adapters.system_clock import SystemClock
from inferapi.domain.errors import ModelLoadFailed
from inferapi.domain.model import DeviceKind, EngineSpec, ModelRef
from session_contract import SessionStoreContract
from session_list_contract import SessionExpiryContract, SessionListContract


class TestFakeClock(ClockContract):
    @pytest.fixture
    def clock(self):
        return FakeClock()

    async def pass_time(self, clock, duration_s):
        await clock.advance(duration_s)


class TestFakeGpuProbe(GpuProbeContract):
    @pytest.fixture
    def probe(self):
        return FakeGpuProbe()


class TestFakeModelRepository(ModelRepositoryContract):
    @pytest.fixture
    def repository(self):
        return FakeModelRepository(make_profile("org/name"))

    @pytest.fixture
    def known(self):
        return ModelRef("org/name", "main")


class TestScriptedEngine(TextEngineContract):
    @pytest.fixture
    def engine(self):
        return ScriptedEngine("Hel", "lo", "", " there", max_batch=2, max_queue=1, clock=SystemClock())


class TestFakeEngineLauncher(EngineLauncherContract):
    @pytest.fixture
    def launcher(self):
        launcher = FakeEngineLauncher()
        launcher.errors["broken"] = [ModelLoadFailed(model="broken", problem="it is")]
        return launcher

    @pytest.fixture
    def spec(self):
        return EngineSpec("gpt2", "/models/gpt2", DeviceKind.CPU, 1, "bfloat16", 4096, 2, 1)

    @pytest.fixture
    def broken_spec(self):
        return EngineSpec("broken", "/models/broken", DeviceKind.CPU, 1, "bfloat16", 4096, 2, 1)


class OnFlakyStore:
    @pytest.fixture
    def clock(self):
        return FakeClock()

    @pytest.fixture
    def store(self, clock):
        return FlakySessionStore(clock, self.TTL_S)

    async def pass_time(self, clock, duration_s):
        await clock.advance(duration_s)


class TestFlakySessionStore(OnFlakyStore, SessionStoreContract):
    pass


class TestFlakySessionLists(OnFlakyStore, SessionListContract):
    pass


class TestFlakySessionExpiry(OnFlakyStore, SessionExpiryContract):
    pass

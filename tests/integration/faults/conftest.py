"""One fork server for all tests of a module, and engines that are to come to harm."""

import pytest
import pytest_asyncio
from live_server import TINY
from worker_processes import HEARTBEAT_TIMEOUT_S

from contracts import unheard
from inferapi.domain.model import DeviceKind, EngineSpec
from inferapi.worker.launcher import ForkServerLauncher


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def launcher():
    launcher = ForkServerLauncher(heartbeat_timeout_s=HEARTBEAT_TIMEOUT_S)
    yield launcher
    await launcher.aclose()


@pytest.fixture
def tiny_spec(models_dir):
    return EngineSpec(TINY, str(models_dir / TINY), DeviceKind.CPU, 1, "float32", 4096, 4, 4, threads=1)


@pytest_asyncio.fixture(loop_scope="module")
async def engine(launcher, tiny_spec):
    engine = await launcher.launch(tiny_spec, unheard)
    yield engine
    await engine.aclose()

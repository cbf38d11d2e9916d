"""The fit check against real workers: what is estimated is close to what a worker takes.

The same measurement as ``benchmarks/memory_fit.py``; the demo model with the shortest KV cache that a load is given,
which fills in seconds.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import pytest_asyncio

from inferapi.worker.launcher import ForkServerLauncher

pytestmark = [pytest.mark.model, pytest.mark.asyncio(loop_scope="module")]
_SOURCE = Path(__file__).parents[3] / "benchmarks" / "memory_fit.py"


@pytest.fixture(scope="module")
def benchmark_module():
    spec = importlib.util.spec_from_file_location("memory_fit_benchmark", _SOURCE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def launcher():
    launcher = ForkServerLauncher(log_level="error")
    yield launcher
    await launcher.aclose()


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral-sliding", "mamba"])
async def test_a_tiny_model_takes_what_was_estimated_once_loaded(benchmark_module, launcher, tmp_path, family):
    folder = benchmark_module.write_tiny(family, tmp_path / family)
    found = await benchmark_module.measure(launcher, folder, "float32")
    assert found.loaded_ratio == pytest.approx(1.0, abs=0.15)
    assert found.facts.memory_bytes == pytest.approx(found.loaded_bytes, rel=0.05)  # what the worker says of itself
    # Nearly all of a tiny model's peak is compiled kernels: one for each number of rows that a step had. Which numbers
    # come up depends on how the requests met, so on what else the machine does: 0.84 to 1.12 was seen. That the peak is
    # within 15 % shows on the demo model below, where kernels are little.
    assert 0.7 <= found.needed_ratio <= 1.3


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
async def test_the_demo_model_takes_what_was_estimated_within_15_percent(
    benchmark_module, launcher, demo_folder, dtype
):
    found = await benchmark_module.measure(launcher, demo_folder, dtype, benchmark_module.NO_ROOM)
    assert found.report.kv_cache_tokens == 2048
    assert found.loaded_ratio == pytest.approx(1.0, abs=0.15)
    assert found.needed_ratio == pytest.approx(1.0, abs=0.15)
    assert found.most_kv_usage_ratio > 0.9  # the cache was filled

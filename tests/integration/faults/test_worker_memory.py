"""Workers that find no memory: a load says so, a request too, and the next one works."""

import asyncio
import json
import resource
import shutil
from dataclasses import replace

import numpy as np
import pytest
import pytest_asyncio
from live_server import TINY, has_ended
from safetensors.numpy import load_file, save_file
from worker_processes import PATIENCE_S, answers, fork_server, worker

from contracts import ask, listen, unheard, until
from inferapi.domain.errors import ModelCrashed, OutOfMemory

pytestmark = pytest.mark.model  # the tiny model speaks its tokens

# A fork server takes seconds to import torch: the tests of this module share one, and so one event loop.
shared = pytest.mark.asyncio(loop_scope="module")

MIB = 1024**2
WIDTH = 16384


@pytest.fixture(scope="module")
def wide_folder(models_dir):
    """The tiny model with a wide layer, so that a long text needs tens of megabytes in one piece."""
    tiny, folder = models_dir / TINY, models_dir / "tiny" / "wide"
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    config = json.loads((tiny / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": WIDTH}), encoding="utf-8")
    weights = load_file(tiny / "model.safetensors")
    for name, weight in weights.items():
        if ".mlp." in name:
            shape = (weight.shape[0], WIDTH) if "down" in name else (WIDTH, weight.shape[1])
            weights[name] = np.full(shape, 0.01, np.float32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest_asyncio.fixture(loop_scope="module")
async def wide(launcher, tiny_spec, wide_folder):
    """In float16, which the processor multiplies without oneDNN: it is torch's allocator that finds nothing."""
    spec = replace(tiny_spec, model="tiny/wide", path=str(wide_folder), dtype="float16")
    engine = await launcher.launch(spec, unheard)
    yield engine
    await engine.aclose()


def limit_address_space(process, room_bytes):
    """Let ``process``, and what it forks, map so many bytes more than it has now."""
    limit = process.memory_info().vms + room_bytes
    process.rlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def lift_limit(process):
    process.rlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@shared
@pytest.mark.parametrize("room_bytes", [0, 16 * MIB, 64 * MIB, 128 * MIB])
async def test_a_load_that_finds_no_memory_says_so_and_the_next_one_works(launcher, tiny_spec, engine, room_bytes):
    """The room decides what is refused: a thread, the weights' file, their copies, the cache."""
    limited = fork_server()
    limit_address_space(limited, room_bytes)
    try:
        with pytest.raises(OutOfMemory):
            await asyncio.wait_for(launcher.launch(replace(tiny_spec, kv_cache_tokens=1_000_000), unheard), PATIENCE_S)
    finally:
        lift_limit(limited)
    assert await answers(launcher, tiny_spec)
    assert (await listen(engine, ask()))[-1].finish is not None


LONG_TEXT = "word " * 600


@shared
async def test_a_request_that_finds_no_memory_is_told_so_and_the_next_one_works(wide):
    process = worker()
    limit_address_space(process, 0)
    with pytest.raises(OutOfMemory):
        await listen(wide, ask(LONG_TEXT))
    lift_limit(process)
    assert (await listen(wide, ask(LONG_TEXT)))[-1].finish is not None
    assert worker() == process


@shared
async def test_a_worker_that_runs_out_of_memory_a_second_time_ends_and_the_next_launch_works(launcher, tiny_spec, wide):
    process = worker()
    limit_address_space(process, 0)
    for _ in range(2):
        with pytest.raises(OutOfMemory):
            await listen(wide, ask(LONG_TEXT))
    await asyncio.wait_for(wide.wait_closed(), PATIENCE_S)
    with pytest.raises(ModelCrashed):
        await listen(wide, ask())
    await until(lambda: has_ended(process))
    assert await answers(launcher, tiny_spec)


@shared
async def test_want_of_memory_that_onednn_cannot_get_over_ends_the_worker_and_nothing_else(launcher, tiny_spec, engine):
    process = worker()
    assert (await listen(engine, ask()))[-1].finish is not None
    limit_address_space(process, 0)
    with pytest.raises((OutOfMemory, ModelCrashed)):  # it may even end in a segmentation fault
        await listen(engine, ask(LONG_TEXT))
    await asyncio.wait_for(engine.wait_closed(), PATIENCE_S)
    await until(lambda: has_ended(process))
    assert await answers(launcher, tiny_spec)

"""Does a worker's memory creep? Requests of mixed lengths, one to eight at a time, on a tiny llama.

    python benchmarks/memory_growth.py [--requests 800]

Says every 100 requests what the process has written beyond what it had once the model was loaded (``Private_Dirty``).
Nearly all of it is kernels that oneDNN compiled for new numbers of rows, which ``engine/packing.py`` keeps few.
The growth follows from the seed, not from the machine; on two quiet cores it takes half a minute a dtype.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
from pathlib import Path

import torch
from memory_fit import MIB, private_bytes, write_tiny

from inferapi.domain.generation import SamplingParams
from inferapi.domain.model import DeviceKind, EngineSpec
from inferapi.engine.loop import EngineLoop
from inferapi.engine.model_loader import load_model
from inferapi.engine.request import Request

MAX_BATCH = 8
LONGEST_PROMPT_TOKENS, MOST_NEW_TOKENS = 900, 24


def grow(loop: EngineLoop, count: int) -> None:
    """Serve so many requests, and say now and then what they cost."""
    source = random.Random(0)  # noqa: S311 - prompts
    before_bytes = private_bytes(os.getpid())
    submitted, running, width = 0, set(), MAX_BATCH
    while submitted < count or not loop.is_idle:
        while submitted < count and len(running) < width:
            tokens = [source.randrange(256) for _ in range(source.randint(4, LONGEST_PROMPT_TOKENS))]
            sampling = SamplingParams(max_new_tokens=source.randint(2, MOST_NEW_TOKENS), ignore_eos=True)
            loop.submit(Request(submitted, tokens, len(tokens), sampling, arrived_s=0.0))
            running.add(submitted)
            submitted += 1
            if submitted % 100 == 0:
                print(
                    f"{submitted:6} requests {(private_bytes(os.getpid()) - before_bytes) / MIB:8.1f} MiB", flush=True
                )
        if source.random() < 0.05:  # how busy it is changes now and then
            width = source.randint(1, MAX_BATCH)
        for output in loop.step():
            if isinstance(output.item, Exception):
                raise output.item
            if output.item.finish:
                running.remove(output.request_id)


def main() -> None:
    """Both dtypes, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=800)
    count = parser.parse_args().requests
    with tempfile.TemporaryDirectory() as scratch:
        folder = write_tiny("llama", Path(scratch) / "llama")
        for dtype in ("bfloat16", "float32"):
            spec = EngineSpec("llama", str(folder), DeviceKind.CPU, 1, dtype, 8192, MAX_BATCH, count, threads=1)
            torch.set_num_threads(1)
            print(f"{dtype}:")
            grow(load_model(spec).loop, count)


if __name__ == "__main__":
    main()

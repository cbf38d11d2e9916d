"""Where the time of a decode step goes, by kernel.

    python benchmarks/decode_profile.py [--quantization int8|int4] [--write docs/benchmarks/decode-profile.md]

Loads the demo model in this process, decodes, and then repeats the kernels of one step kind by kind. What is left of
the whole step is Python: the scheduler, the sampler, the text. No server, no network.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from inferapi.domain.generation import SamplingParams
from inferapi.domain.model import TAPE_TOKENS, DeviceKind, EngineSpec
from inferapi.engine.loop import EngineLoop
from inferapi.engine.model_loader import load_model
from inferapi.engine.native.calls import Operation
from inferapi.engine.request import Request

MODEL = Path("models/HuggingFaceTB/SmolLM2-135M-Instruct")
ROWS = (1, 8, 32)
PROMPT_TOKENS, NEW_TOKENS = 40, 48
REPEATS = 15
KINDS = {
    Operation.LINEAR: "linear layers",
    Operation.GATED: "gate and up, with their activation",
    Operation.NORM: "norms",
    Operation.ROTATE: "rotary positions",
    Operation.WRITE: "writing keys and values",
    Operation.ATTEND: "attention",
    Operation.ADD: "residual sums",
}


def median_ms(work: Callable[[], Any]) -> float:
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def fill(loop: EngineLoop, rows: int) -> None:
    """So many greedy requests, their prompts computed."""
    sampling = SamplingParams(max_new_tokens=NEW_TOKENS, temperature=0, repetition_penalty=1.0, ignore_eos=True)
    for n in range(rows):
        tokens = [(7919 * at + 131 * n + 11) % 40000 for at in range(PROMPT_TOKENS)]
        loop.submit(Request(1000 * rows + n, tokens, PROMPT_TOKENS, sampling, time.monotonic()))
    while any(request.num_completion_tokens == 0 for request in loop._scheduler.running) or loop.load.waiting:  # noqa: SLF001 - this is about its insides
        loop.step()


def profile(loop: EngineLoop, rows: int) -> dict[str, float]:
    """Milliseconds by kind, and of the whole step."""
    fill(loop, rows)
    whole = median_ms(loop.step)
    runner: Any = loop._runner  # noqa: SLF001 - this is about its insides
    tape = runner._tapes[next(tokens for tokens in TAPE_TOKENS if tokens >= rows)][0]  # noqa: SLF001
    kernels = runner._kernels  # noqa: SLF001
    calls = [step.call for step in tape._alive[0] if hasattr(step, "call")]  # noqa: SLF001
    found = {}
    with torch.inference_mode():
        for operation, name in KINDS.items():
            some = [call for call in calls if call.operation == operation]
            listed = kernels.library.list_of(some)
            work = partial(kernels.library.run, listed, len(some), rows, kernels.threads)
            found[name] = median_ms(work)
        found["all of the forward pass, from tape"] = median_ms(lambda: tape.repeat(rows, rows))
    found["the whole step"] = whole
    while not loop.is_idle:
        loop.step()
    return found


def main() -> None:
    """Profile, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quantization", choices=("int8", "int4"))
    parser.add_argument("--write", type=Path, help="also write the tables into this Markdown file")
    arguments = parser.parse_args()
    threads = torch.get_num_threads()
    spec = EngineSpec(str(MODEL), str(MODEL), DeviceKind.CPU, 1, "bfloat16", 32768, 32, 32, threads=threads)
    tables = []
    for quantization in (None, "int8", "int4") if arguments.quantization is None else (arguments.quantization,):
        model = load_model(replace(spec, quantization=quantization))
        columns = [profile(model.loop, rows) for rows in ROWS]
        tables += [
            f"## Weights in {quantization or 'bf16'}",
            "",
            f"| ms in a step of so many requests, of about {PROMPT_TOKENS + NEW_TOKENS // 2} tokens each | "
            + " | ".join(map(str, ROWS))
            + " |",
            "|---|" + "---:|" * len(ROWS),
            *(f"| {name} | " + " | ".join(f"{column[name]:.2f}" for column in columns) + " |" for name in columns[0]),
            "",
        ]
    print("\n".join(tables))
    if arguments.write:
        head = arguments.write.read_text(encoding="utf-8").split("<!-- measured -->")[0]
        arguments.write.write_text(head + "<!-- measured -->\n\n" + "\n".join(tables), encoding="utf-8")


if __name__ == "__main__":
    main()

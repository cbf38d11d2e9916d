"""What was found, as Markdown."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import psutil
import torch
import transformers
from transformers.utils.import_utils import is_flash_attn_2_available

from .contenders import CONTINUOUS_BATCHING, ENGINE
from .correctness import Check
from .limits import Limits
from .speed import Speed, Workload

LEAST_OF_LIMIT = 0.7


def machine(device: str) -> str:
    """The device and the versions that matter."""
    name = f"{psutil.cpu_count(logical=False)} CPU cores"
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        name = f"{properties.name} ({properties.total_memory / 1024**3:.0f} GiB), CUDA {torch.version.cuda}"
    flash = "with" if is_flash_attn_2_available() else "without"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, {flash} flash-attn"
    return f"{name}, Python {platform.python_version()}, {versions}."


def correctness(checks: Sequence[Check]) -> list[str]:
    """One line a check."""
    lines = ["## Correctness", "", "| check | result | found |", "|---|---|---|"]
    lines += [f"| {check.name} | {'passed' if check.passed else '**failed**'} | {check.detail} |" for check in checks]
    return lines


def speed(limits: Limits, workload: Workload, speeds: Sequence[Speed], notes: Sequence[str]) -> list[str]:
    """The contenders beside each other and beside the limit, then the targets."""
    return [
        "## Speed",
        "",
        (
            f"Prompts of {workload.prompt_tokens} random tokens, {workload.many_tokens} greedy tokens each, bfloat16; "
            f"medians of {workload.repetitions}. *Decoding* is what answers of {workload.many_tokens} tokens take "
            f"longer than those of {workload.few_tokens}. The limit is what decoding must read, weights once a step "
            f"and keys and values, at the {limits.bandwidth / 1e9:.0f} GB/s measured in this run, or its arithmetic "
            f"at {limits.matrix_rate / 1e12:.1f} TFLOP/s, whichever takes longer."
        ),
        "",
        "| model | streams | | tokens/s | decoding, tokens/s | limit | of the limit |",
        "|---|---:|---|---:|---:|---:|---:|",
        *(
            f"| {one.model} | {one.streams} | {one.contender} | {one.total:.1f} | {one.decode:.1f} | {one.limit:.1f} "
            f"| {one.decode / one.limit:.0%} |"
            for one in sorted(speeds, key=lambda one: (one.model, one.streams))
        ),
        "",
        *(f"- {note}" for note in notes),
        "",
        "## Targets",
        "",
        "| target | measured | reached |",
        "|---|---:|---|",
        *_targets(speeds),
    ]


def _targets(speeds: Sequence[Speed]) -> list[str]:
    by_key = {(one.model, one.streams, one.contender): one for one in speeds}
    lines = []
    largest = by_key.get(("8B", 1, ENGINE))
    if largest is not None:
        ratio = largest.decode / largest.limit
        lines.append(
            f"| 8B, one stream: ≥ {LEAST_OF_LIMIT:.0%} of the limit | {ratio:.0%} | {_yes(ratio >= LEAST_OF_LIMIT)} |"
        )
    for (model, streams, contender), own in sorted(by_key.items()):
        other = by_key.get((model, streams, CONTINUOUS_BATCHING))
        if contender == ENGINE and other is not None:
            ratio = own.total / other.total
            what = f"{model}, {streams} at once: ahead of transformers' continuous batching, tokens/s"
            lines.append(f"| {what} | {ratio:.2f} times | {_yes(ratio > 1)} |")
    return lines


def _yes(reached: bool) -> str:  # noqa: FBT001 - it is the question
    return "yes" if reached else "**no**"

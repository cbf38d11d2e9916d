"""The engine on a GPU: are its answers right, and how fast do they come beside transformers and what the GPU allows.

    python -m benchmarks.gpu_check [--write docs/benchmarks/gpu-measured.md]

Ends with status 1 if an answer is wrong; speed is told, not judged. Models are built from their shapes with random
weights: nothing is downloaded. ``--device cpu --tiny`` runs the same code on small shapes, to check the script itself.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from .gpu import report, shapes, speed
from .gpu.correctness import Check, check
from .gpu.limits import measure


def main(arguments: Sequence[str] | None = None) -> int:
    """Status of the process: 0 if all answers are right, 1 if not, 2 if there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes: says nothing about speed")
    parser.add_argument("--part", choices=["all", "correctness", "speed"], default="all")
    parser.add_argument("--models", nargs="+", choices=list(shapes.SHAPES), default=list(shapes.SHAPES))
    parser.add_argument("--write", type=Path, help="a Markdown file for what is printed")
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser.parse_args(given)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device; --device cpu --tiny checks the script itself", file=sys.stderr)
        return 2
    if options.device == "cpu":
        torch.set_num_threads(1)  # tensors this small gain nothing from threads, which wait for each other
    warnings.filterwarnings("ignore", message="index_reduce")
    graphs = _watch_graphs()
    lines = [
        "# On a GPU, measured",
        "",
        "Made by:",
        "",
        f"    {shlex.join(['python', '-m', 'benchmarks.gpu_check', *given])}",
    ]
    lines += ["", report.machine(options.device)]
    if options.tiny or options.device != "cuda":
        lines += ["", "**Small shapes or no GPU: this shows that the script runs, and nothing about speed.**"]

    checks: list[Check] = []
    if options.part != "speed":
        for found in check(options.device):
            _tell(f"{'passed' if found.passed else 'FAILED'}: {found.name}: {found.detail}")
            checks.append(found)
        lines += ["", *report.correctness(checks)]
    if options.part != "correctness":
        lines += ["", *_speed(options, graphs)]
    text = "\n".join(lines) + "\n"
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")
    return 0 if all(found.passed for found in checks) else 1


def _speed(options: argparse.Namespace, graphs: Counter[str]) -> list[str]:
    limits = measure(options.device, tiny=options.tiny)
    workload = speed.TINY if options.tiny else speed.REAL
    models = shapes.TINY if options.tiny else {name: shapes.SHAPES[name] for name in options.models}
    speeds: list[speed.Speed] = []
    notes: list[str] = []
    for name, shape in models.items():
        graphs.clear()
        try:
            model = shapes.build(shape, options.device)
        except torch.OutOfMemoryError:
            notes.append(f"{name}: not measured, the device has no room for its weights")
            continue
        measured, failures = speed.compare(name, model, limits, workload, _tell)
        speeds += measured
        notes += failures
        notes += [f"{name}: {count} times: {message}" for message, count in graphs.items()]
        if not graphs:
            notes.append(f"{name}: this engine used no CUDA graphs")
        del model
    return report.speed(limits, workload, speeds, notes)


def _watch_graphs() -> Counter[str]:
    """What the engine says about CUDA graphs from now on, counted."""
    said: Counter[str] = Counter()

    class Counting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            is_graph = record.levelno == logging.DEBUG
            said["a size of decode steps became a CUDA graph" if is_graph else record.getMessage()] += 1

    logger = logging.getLogger("inferapi.engine.cuda_graphs")
    logger.setLevel(logging.DEBUG)
    logger.addHandler(Counting())
    return said


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""What the machine allows: its memory bandwidth and its matrix rates, and from them the most tokens a second.

    python -m benchmarks.compare.limits

prints them as JSON; run in a process of its own, with as many threads as there are cores.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .dialects import MODEL_FOLDER
from .environments import GGUFS, ROOT

READ_BYTES = 1024**3
MATRIX_ROWS = 4096
TRIES = 7
CONTEXT_TOKENS = 72  # of a request that is half way: 40 of its prompt and 32 of its 64
SCALE_BYTES_PER_WEIGHT = {"int8": 0.0, "int4": 4 / 128}  # a scale and a zero point, in bf16, for 128 weights


@dataclass(frozen=True)
class Shape:
    """What a step of the model reads and computes.

    Attributes:
        weights_bytes: read in every step, by format. The embedding is the output's matrix too, and is read whole.
        kv_bytes_per_token: keys and values in bf16.
        parameters: each is multiplied and added once a token.
    """

    weights_bytes: dict[str, float]
    kv_bytes_per_token: int
    parameters: int


@dataclass(frozen=True)
class Limits:
    """Measured rates, and the bound that they set.

    Attributes:
        bandwidth: bytes a second that all cores together read from memory.
        matrix_rates: operations a second by format; a multiplication and an addition are two.
    """

    bandwidth: float = 0.0
    matrix_rates: dict[str, float] = field(default_factory=dict)

    def or_better(self, other: Limits) -> Limits:
        """The higher rate of both everywhere: whatever was measured, the machine allows."""
        rates = {name: max(rate, self.matrix_rates.get(name, 0.0)) for name, rate in other.matrix_rates.items()}
        return Limits(max(self.bandwidth, other.bandwidth), rates)

    def step_s(self, shape: Shape, weights: str, rows: int) -> tuple[float, float]:
        """Least seconds of a decoding step of so many requests: for reading, and for computing."""
        read_bytes = shape.weights_bytes[weights] + rows * CONTEXT_TOKENS * shape.kv_bytes_per_token
        rate = self.matrix_rates["bf16"] if weights == "bf16" else max(self.matrix_rates.values())
        return read_bytes / self.bandwidth, 2 * shape.parameters * rows / rate

    def tokens_per_s(self, shape: Shape, weights: str, rows: int) -> float:
        """The most that so many requests can get."""
        return rows / max(self.step_s(shape, weights, rows))


def model_shape() -> Shape:
    """From the headers of the model's file and of the GGUF file."""
    folder = ROOT / MODEL_FOLDER
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    parameters = 0
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        header.pop("__metadata__", None)
        parameters += sum(_product(tensor["shape"]) for tensor in header.values())
    head_size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    weights_bytes = {
        "bf16": 2.0 * parameters,
        # Whoever quantizes the output's matrix too has less to read: the bound is for them.
        "int8": float(parameters),
        "int4": parameters * (0.5 + SCALE_BYTES_PER_WEIGHT["int4"]),
        **{name: float(path.stat().st_size) for name, path in GGUFS.items() if path.exists()},
    }
    kv_bytes = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_size * 2
    return Shape(weights_bytes, kv_bytes, parameters)


def _product(sizes: list[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product


def measure_apart() -> Limits:
    """Run this module in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.compare.limits"]
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=300)
    return Limits(**json.loads(told.stdout))


def _measure() -> dict[str, Any]:
    import torch  # noqa: PLC0415 - the rest of the script does without, and stays small

    words = torch.ones(READ_BYTES // 8, dtype=torch.int64)
    bandwidth = READ_BYTES / _best_s(words.sum)
    operations = 2 * MATRIX_ROWS**3
    left = torch.randn(MATRIX_ROWS, MATRIX_ROWS).to(torch.bfloat16)
    rates = {"bf16": operations / _best_s(lambda: left @ left)}
    integers = torch.randint(-128, 127, (MATRIX_ROWS, MATRIX_ROWS), dtype=torch.int8)
    rates["int8"] = operations / _best_s(lambda: torch._int_mm(integers, integers))  # noqa: SLF001 - no public name
    return {"bandwidth": bandwidth, "matrix_rates": rates}


def _best_s(compute: Callable[[], object]) -> float:
    times_s = []
    for _ in range(TRIES):
        started_s = time.perf_counter()
        compute()
        times_s.append(time.perf_counter() - started_s)
    return min(times_s)


if __name__ == "__main__":
    print(json.dumps(_measure()))

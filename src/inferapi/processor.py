"""What this machine's processor can do, and whether kernels can be compiled for it. Any layer may ask."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Collection
from pathlib import Path

_NATIVE_FLAGS = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni")
_COMPILERS = ("c++", "g++", "clang++")


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The processor's features in Linux's names; none where it does not tell."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    named = (line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features")))
    return frozenset(flag for flags in named for flag in flags)


def compiler() -> list[str] | None:
    """The command of the C++ compiler: what ``CXX`` says, or the first of the usual ones that is on the PATH."""
    named = shlex.split(os.environ.get("CXX", ""))
    candidates = [named] if named else [[name] for name in _COMPILERS]
    return next((command for command in candidates if shutil.which(command[0])), None)


def native_kernels_problem(flags: Collection[str]) -> str:
    """Why no kernels can be compiled for a processor of these features; empty if they can."""
    missing = [flag for flag in _NATIVE_FLAGS if flag not in flags]
    if missing:
        return f"this processor lacks {', '.join(missing)}"
    return "" if compiler() else "there is no C++ compiler on PATH ($CXX, c++, g++ or clang++)"

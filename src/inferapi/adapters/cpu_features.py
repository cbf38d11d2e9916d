"""What this machine's processor can do, and whether kernels can be compiled for it."""

from __future__ import annotations

import os
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


def native_kernels_problem(flags: Collection[str]) -> str:
    """Why no kernels can be compiled for a processor of these features; empty if they can."""
    missing = [flag for flag in _NATIVE_FLAGS if flag not in flags]
    if missing:
        return f"this processor lacks {', '.join(missing)}"
    return "" if _has_compiler() else "there is no C++ compiler on PATH ($CXX, c++, g++ or clang++)"


def _has_compiler() -> bool:
    named = os.environ.get("CXX")  # whoever names one means that one
    return any(shutil.which(compiler) for compiler in ([named] if named else _COMPILERS))

"""The kernels' sources become a library for this machine: compiled once, kept in the user's cache, checked.

A wheel cannot carry it: it is compiled for the very processor that it runs on. Where no compiler is, or the processor
lacks what the kernels are written for, the engine computes with PyTorch's own kernels.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import stat
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import platformdirs

from inferapi.engine.native.calls import Library

log = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-pthread", "-fvisibility=hidden")
_COMPILERS = ("c++", "g++", "clang++")
_COMPILER_PATIENCE_S = 300
_FEATURES = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni"})


class NoKernelsError(Exception):
    """Why there is no library."""


def load_library() -> Library:
    """The kernels, compiled if this machine has not done so yet (some seconds, once).

    Raises:
        NoKernelsError: they cannot be had; the message says why.
    """
    missing = _FEATURES - _processor_features()
    if missing:
        raise NoKernelsError(f"the processor lacks {', '.join(sorted(missing))}")
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise NoKernelsError("there is no C++ compiler (c++, g++ or clang++) on the PATH")
    try:
        file = _cached(compiler)
        return Library(str(file))
    except subprocess.CalledProcessError as error:
        log.warning("the compiler refused the kernels:\n%s", error.stderr)
        raise NoKernelsError(f"{Path(compiler).name} refused the kernels' sources") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise NoKernelsError(f"the kernels could not be compiled or loaded ({type(error).__name__})") from error


def _cached(compiler: str) -> Path:
    """The library's file; compiled into the cache if it is not there. Many processes may do so at once."""
    sources = sorted(_SOURCES.glob("*.[ch]pp"))
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, timeout=_COMPILER_PATIENCE_S)  # noqa: S603 - the user's own compiler
    digest = hashlib.sha256(repr((_FLAGS, sorted(_processor_features()))).encode() + version.stdout)
    for source in sources:
        digest.update(source.read_bytes())
    folder = Path(platformdirs.user_cache_dir("inferapi", appauthor=False), "kernels")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = folder / f"{digest.hexdigest()[:32]}.so"
        if file.exists() and _is_ours(file):
            return file
        _compile(compiler, [source for source in sources if source.suffix == ".cpp"], file)
    except (PermissionError, FileNotFoundError):  # no home, or one that is read-only: once a process
        file = Path(tempfile.mkdtemp(prefix="inferapi-kernels-"), "kernels.so")
        _compile(compiler, [source for source in sources if source.suffix == ".cpp"], file)
    return file


def _compile(compiler: str, sources: list[Path], file: Path) -> None:
    log.info("compiling the kernels for this processor, once: a few seconds")
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".compiling-") as scratch:
        objects = [str(Path(scratch, f"{source.stem}.o")) for source in sources]

        def compile_one(source: Path, to: str) -> None:
            _tell(compiler, *_FLAGS, "-c", str(source), "-o", to)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, sources, objects))
        library = str(Path(scratch, "kernels.so"))
        _tell(compiler, "-shared", "-pthread", *objects, "-o", library)
        Path(library).chmod(0o500)
        Path(library).replace(file)


def _tell(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMPILER_PATIENCE_S)  # noqa: S603 - the user's own compiler


def _is_ours(file: Path) -> bool:
    """Nobody else could have put it there or changed it."""
    status = file.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _processor_features() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    found = re.search(r"^flags\s*:(.*)$", text, re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()

"""The kernels' sources become a library for this machine: compiled once, kept in the user's cache, checked.

A wheel cannot carry it: it is compiled for the very processor that it runs on. Where no compiler is, or the processor
lacks what the kernels are written for, the engine computes with PyTorch's own kernels.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import platformdirs

from inferapi.engine.native.calls import Library
from inferapi.processor import compiler, cpu_flags, native_kernels_problem

log = logging.getLogger(__name__)

_SOURCES = Path(__file__).parent
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fPIC", "-pthread", "-fvisibility=hidden")
_COMPILER_PATIENCE_S = 300


class NoKernelsError(Exception):
    """Why there is no library."""


def load_library() -> Library:
    """The kernels, compiled if this machine has not done so yet (some seconds, once).

    Raises:
        NoKernelsError: they cannot be had; the message says why.
    """
    flags = cpu_flags()
    problem = native_kernels_problem(flags)
    command = compiler()
    if problem or command is None:
        raise NoKernelsError(problem)
    try:
        file = _cached(command, flags)
        try:
            return Library(str(file))
        except OSError:  # damaged, by a power cut say: once more
            file.unlink()
            return Library(str(_cached(command, flags)))
    except subprocess.CalledProcessError as error:
        log.warning("the compiler refused the kernels:\n%s", error.stderr)
        raise NoKernelsError(f"{Path(command[0]).name} refused the kernels' sources") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise NoKernelsError(f"the kernels could not be compiled or loaded ({type(error).__name__})") from error


def _cached(command: Sequence[str], flags: Collection[str]) -> Path:
    """The library's file; compiled into the cache if it is not there. Many processes may do so at once."""
    sources = sorted(_SOURCES.glob("*.[ch]pp"))
    version = subprocess.run([*command, "--version"], check=True, capture_output=True, timeout=_COMPILER_PATIENCE_S)  # noqa: S603 - the user's own compiler
    digest = hashlib.sha256(repr((_FLAGS, command, sorted(flags))).encode() + version.stdout)
    for source in sources:
        digest.update(source.read_bytes())
    folder = _folder()
    file = folder / f"{digest.hexdigest()[:32]}.so"
    if not (file.exists() and _is_ours(file)):
        _compile(command, [source for source in sources if source.suffix == ".cpp"], file)
    return file


def _folder() -> Path:
    """The user's cache, or where there is none that can be written a new folder for this process alone."""
    folder = Path(platformdirs.user_cache_dir("inferapi", appauthor=False), "kernels")
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    return Path(tempfile.mkdtemp(prefix="inferapi-kernels-"))


def _compile(command: Sequence[str], sources: list[Path], file: Path) -> None:
    log.info("compiling the kernels for this processor, once: a few seconds")
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".compiling-") as scratch:
        objects = [str(Path(scratch, f"{source.stem}.o")) for source in sources]

        def compile_one(source: Path, to: str) -> None:
            _tell(*command, *_FLAGS, "-c", str(source), "-o", to)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, sources, objects))
        library = str(Path(scratch, "kernels.so"))
        _tell(*command, "-shared", "-pthread", *objects, "-o", library)
        Path(library).chmod(0o500)
        Path(library).replace(file)


def _tell(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=_COMPILER_PATIENCE_S)  # noqa: S603 - the user's own compiler


def _is_ours(file: Path) -> bool:
    """Nobody else could have put it there or changed it."""
    status = file.stat()
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)

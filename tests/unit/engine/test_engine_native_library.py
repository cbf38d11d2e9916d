"""The kernels' library: compiled once, kept, and done without where it cannot be had."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from inferapi.engine.native import library
from inferapi.engine.native.library import NoKernelsError, load_library

PROGRAM = """
import ctypes
from inferapi.engine.native.calls import Add, Operation
from inferapi.engine.native.library import load_library
numbers = (ctypes.c_uint16 * 3)(0x3F80, 0x4000, 0x4040)  # 1, 2 and 3
at = ctypes.addressof(numbers)
library = load_library()
call = Add(Operation.ADD, at, at, at, 3)
library.run(library.list_of([call]), 1, 1, 2)
print([hex(number) for number in numbers])
"""
DOUBLED = "['0x4000', '0x4080', '0x40c0']\n"

pytestmark = pytest.mark.usefixtures("compiled")  # none of it where there is no compiler or another processor


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where libraries are kept; empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "inferapi" / "kernels"


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that a compiler, the real one, notes its calls in; its optimization is off, for time's sake."""
    real = next(path for path in map(shutil.which, ("c++", "g++", "clang++")) if path)
    file = tmp_path / "calls"
    write_compiler(tmp_path, monkeypatch, f'echo "$@" >> {file}\nexec {real} "$@" -O0\n')
    return file


@pytest.fixture
def quick_compiler(calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same with sources of one line."""
    folder = tmp_path / "sources"
    folder.mkdir()
    door = 'extern "C" __attribute__((visibility("default"))) void inferapi_run(const void*, long, long, long) {}\n'
    (folder / "run.cpp").write_text(door, encoding="ascii")
    (folder / "other.cpp").write_text("int other() { return 1; }\n", encoding="ascii")
    monkeypatch.setattr(library, "_SOURCES", folder)
    return calls


def write_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "compiler"
    program.write_text(f"#!/bin/sh\n{script}", encoding="ascii")
    program.chmod(0o755)
    monkeypatch.setenv("CXX", str(program))


def compilations(calls: Path) -> int:
    return sum("-shared" in line for line in calls.read_text(encoding="utf-8").splitlines())


def start() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)


def test_it_is_compiled_once_and_then_kept(cache: Path, quick_compiler: Path) -> None:
    load_library()
    load_library()

    assert compilations(quick_compiler) == 1
    (file,) = cache.iterdir()
    assert (file.suffix, file.stat().st_mode & 0o777, cache.stat().st_mode & 0o777) == (".so", 0o500, 0o700)


def test_other_flags_are_another_library(cache: Path, quick_compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_library()
    monkeypatch.setattr(library, "_FLAGS", (*library._FLAGS, "-DOTHER"))
    load_library()

    assert compilations(quick_compiler) == 2
    assert len(list(cache.iterdir())) == 2


def test_processes_that_compile_at_once_do_not_disturb_each_other(cache: Path, calls: Path) -> None:
    processes = [start() for _ in range(2)]

    assert [process.communicate()[0] for process in processes] == [DOUBLED] * 2
    assert len(list(cache.iterdir())) == 1


def test_what_somebody_else_may_have_changed_is_compiled_again(cache: Path, quick_compiler: Path) -> None:
    load_library()
    (file,) = cache.iterdir()
    file.chmod(0o522)

    load_library()

    assert compilations(quick_compiler) == 2
    assert file.stat().st_mode & 0o777 == 0o500


def test_a_file_that_a_crash_left_empty_is_compiled_again(cache: Path, quick_compiler: Path) -> None:
    assert start().communicate()[0] == DOUBLED  # in another process: what one has loaded it never reads again
    (file,) = cache.iterdir()
    file.unlink()
    file.touch(mode=0o500)

    load_library()

    assert compilations(quick_compiler) == 2


@pytest.mark.parametrize("home", ["/dev/null/nowhere"])
def test_without_a_cache_folder_it_is_compiled_for_this_process(
    quick_compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    load_library()

    assert compilations(quick_compiler) == 1
    assert not Path(home).exists()


def test_a_cache_folder_that_cannot_be_written_is_left_alone(
    cache: Path, quick_compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir(parents=True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: not Path(path).samefile(cache))  # root may write anywhere

    load_library()

    assert compilations(quick_compiler) == 1
    assert list(cache.iterdir()) == []


def test_a_compiler_that_refuses_the_sources_is_named(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write_compiler(tmp_path, monkeypatch, '[ "$1" = --version ] && exit 0\necho too old >&2\nexit 1\n')

    with pytest.raises(NoKernelsError, match=r"^compiler refused the kernels' sources$"):
        load_library()

    assert "too old" in caplog.text
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("/bin/false", "false refused the kernels' sources"),
        ("/nowhere/c++", "there is no C++ compiler on PATH ($CXX, c++, g++ or clang++)"),
    ],
)
def test_what_is_no_compiler_is_none(cache: Path, monkeypatch: pytest.MonkeyPatch, command: str, reason: str) -> None:
    monkeypatch.setenv("CXX", command)

    with pytest.raises(NoKernelsError) as caught:
        load_library()

    assert str(caught.value) == reason


def test_a_compiler_that_makes_something_else_is_no_use(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = 'while [ $# -gt 1 ]; do [ "$1" = -o ] && echo nothing > "$2"; shift; done\n'
    write_compiler(tmp_path, monkeypatch, script)

    with pytest.raises(NoKernelsError, match="could not be compiled or loaded"):
        load_library()


@pytest.mark.parametrize("flags", [frozenset(), frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq"})])
def test_a_processor_without_the_instructions_compiles_nothing(
    cache: Path, quick_compiler: Path, monkeypatch: pytest.MonkeyPatch, flags: frozenset[str]
) -> None:
    monkeypatch.setattr(library, "cpu_flags", lambda: flags)

    with pytest.raises(NoKernelsError, match=r"^this processor lacks .*avx512_bf16, avx512_vnni$"):
        load_library()

    assert not quick_compiler.exists()
    assert not cache.exists()

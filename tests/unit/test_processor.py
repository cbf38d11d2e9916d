"""What a processor says of itself, and the compiler that there is or is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from inferapi.processor import cpu_flags, native_kernels_problem

FLAGS = ("fpu", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_bf16", "avx512_vnni")
NO_COMPILER = "there is no C++ compiler on PATH ($CXX, c++, g++ or clang++)"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all of PATH, and empty."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    return folder


def install(folder: Path, name: str) -> Path:
    program = folder / name
    program.write_text("#!/bin/sh\n", encoding="ascii")
    program.chmod(0o755)
    return program


def test_all_flags_of_all_lines_are_read(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: bf16\nflags\t\t: fpu sse\n\nFeatures\t: asimd\n", encoding="ascii")
    assert cpu_flags(cpuinfo) == {"fpu", "sse", "asimd"}


def test_a_processor_that_does_not_tell_has_no_flags(tmp_path):
    assert cpu_flags(tmp_path / "nothing") == frozenset()


@pytest.mark.parametrize("compiler", ["c++", "g++", "clang++"])
def test_with_the_features_any_compiler_will_do(programs, compiler):
    assert native_kernels_problem(FLAGS) == NO_COMPILER
    install(programs, compiler)
    assert native_kernels_problem(FLAGS) == ""


def test_a_compiler_may_be_named_by_its_path(programs, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(install(tmp_path, "my-compiler")))
    assert native_kernels_problem(FLAGS) == ""


@pytest.mark.parametrize(("named", "expected"), [("", ""), ("no-such-compiler", NO_COMPILER)])
def test_a_compiler_that_is_named_is_the_one_that_counts(programs, monkeypatch, named, expected):
    install(programs, "g++")
    monkeypatch.setenv("CXX", named)
    assert native_kernels_problem(FLAGS) == expected


@pytest.mark.parametrize("missing", FLAGS[1:])
def test_without_one_of_the_features_a_compiler_does_not_help(programs, missing):
    install(programs, "c++")
    assert native_kernels_problem([flag for flag in FLAGS if flag != missing]) == f"this processor lacks {missing}"

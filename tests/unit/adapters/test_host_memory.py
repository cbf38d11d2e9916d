from __future__ import annotations

import psutil
import pytest

from contracts import GpuProbeContract
from fakes import GIB, MIB
from inferapi.adapters.host_memory import HostMemoryProbe
from inferapi.domain.model import DeviceKind

X86 = "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2 avx512f {}\n\nprocessor\t: 1\nflags\t\t: fpu\n"
NONE = "9223372036854771712\n"


def write(root, **files: str):
    for name, text in files.items():
        file = root / name.replace("__", "/").replace("_DOT_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="ascii")
    return root


def v2(root, limit: str, used: int, inactive_file: int):
    stat = f"anon 5\nfile 7\ninactive_anon 1\ninactive_file {inactive_file}\nactive_file 3\n"
    return write(root, memory_DOT_max=limit, memory_DOT_current=f"{used}\n", memory_DOT_stat=stat)


def v1(root, limit: str, used: int, inactive_file: int):
    stat = f"cache 5\ninactive_file 1\ntotal_cache 9\ntotal_inactive_file {inactive_file}\n"
    return write(
        root,
        memory__memory_DOT_limit_in_bytes=limit,
        memory__memory_DOT_usage_in_bytes=f"{used}\n",
        memory__memory_DOT_stat=stat,
    )


@pytest.fixture
def cpuinfo(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text(X86.format("avx512_bf16"), encoding="ascii")
    return file


@pytest.mark.parametrize("version", [v1, v2])
def test_a_cgroup_limit_counts_and_the_page_cache_does_not(tmp_path, cpuinfo, version):
    cgroup = version(tmp_path / "cgroup", f"{200 * MIB}\n", 150 * MIB, 100 * MIB)
    device = HostMemoryProbe(cgroup, cpuinfo).device()
    assert (device.total_bytes, device.free_bytes) == (200 * MIB, 150 * MIB)


@pytest.mark.parametrize("version", [v1, v2])
def test_a_cgroup_over_its_limit_leaves_nothing(tmp_path, cpuinfo, version):
    cgroup = version(tmp_path / "cgroup", f"{200 * MIB}\n", 250 * MIB, 0)
    device = HostMemoryProbe(cgroup, cpuinfo).device()
    assert (device.total_bytes, device.free_bytes) == (200 * MIB, 0)


@pytest.mark.parametrize(("version", "limit"), [(v1, NONE), (v2, "max\n"), (v1, "1" + "0" * 30), (v2, "1" + "0" * 17)])
def test_without_a_limit_below_it_the_machine_counts(tmp_path, cpuinfo, version, limit):
    cgroup = version(tmp_path / "cgroup", limit, 150 * MIB, 0)
    assert HostMemoryProbe(cgroup, cpuinfo).device().total_bytes == psutil.virtual_memory().total


def test_without_a_cgroup_the_machine_counts(tmp_path, cpuinfo):
    device = HostMemoryProbe(tmp_path / "nothing", cpuinfo).device()
    assert device.total_bytes == psutil.virtual_memory().total


def test_a_cgroup_of_both_versions_is_read_as_the_newer(tmp_path, cpuinfo):
    cgroup = v2(v1(tmp_path / "cgroup", f"{300 * MIB}\n", 0, 0), f"{200 * MIB}\n", 0, 0)
    assert HostMemoryProbe(cgroup, cpuinfo).device().total_bytes == 200 * MIB


def test_a_cgroup_that_cannot_be_read_is_none(tmp_path, cpuinfo):
    cgroup = write(tmp_path / "cgroup", memory_DOT_max="max", memory_DOT_current="what?")
    assert HostMemoryProbe(cgroup, cpuinfo).device().total_bytes == psutil.virtual_memory().total


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (X86.format("avx512_bf16"), True),
        (X86.format("amx_bf16 amx_tile"), True),
        (X86.format(""), False),
        (X86.format("avx512_bf16x"), False),
        ("processor\t: 0\nFeatures\t: fp asimd bf16 i8mm\n", True),
        ("processor\t: 0\nFeatures\t: fp asimd\n", False),
        ("model name: bf16\n", False),
        ("", False),
    ],
)
def test_the_processor_says_whether_it_computes_in_bf16(tmp_path, text, expected):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(text, encoding="ascii")
    assert HostMemoryProbe(tmp_path, cpuinfo).device().supports_bfloat16 is expected


@pytest.mark.parametrize("has_compiler", [True, False])
def test_a_processor_with_the_features_can_have_native_kernels_if_there_is_a_compiler(
    tmp_path, monkeypatch, has_compiler
):
    cpuinfo, compiler = tmp_path / "cpuinfo", tmp_path / "c++"
    cpuinfo.write_text(X86.format("avx512bw avx512vl avx512dq avx512_bf16 avx512_vnni"), encoding="ascii")
    compiler.write_text("#!/bin/sh\n", encoding="ascii")
    compiler.chmod(0o755 if has_compiler else 0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    device = HostMemoryProbe(tmp_path, cpuinfo).device()
    assert (device.native_kernels, "compiler" in device.native_kernels_reason) == (has_compiler, not has_compiler)


def test_a_processor_without_the_features_cannot_and_says_which(tmp_path, cpuinfo):
    device = HostMemoryProbe(tmp_path, cpuinfo).device()
    assert (device.native_kernels, device.native_kernels_reason) == (
        False,
        "this processor lacks avx512bw, avx512vl, avx512dq, avx512_vnni",
    )


def test_a_machine_without_cpuinfo_is_taken_to_have_no_bf16(tmp_path):
    device = HostMemoryProbe(tmp_path, tmp_path / "nothing").device()
    assert (device.supports_bfloat16, device.kind, device.count) == (False, DeviceKind.CPU, 1)


class TestHostMemoryProbe(GpuProbeContract):
    @pytest.fixture
    def probe(self, tmp_path, cpuinfo):
        return HostMemoryProbe(v2(tmp_path / "cgroup", f"{GIB}\n", 100 * MIB, 0), cpuinfo)

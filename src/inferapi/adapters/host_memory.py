"""The host's memory as a place for models: what the machine and its cgroup leave."""

from __future__ import annotations

import platform
from pathlib import Path

import psutil

from inferapi.domain.model import Device, DeviceKind
from inferapi.processor import cpu_flags, native_kernels_problem

_CGROUP = Path("/sys/fs/cgroup")
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86 with AVX-512 or AMX; Arm
_OVERHEAD_BYTES = 27 * 1024**2  # of a worker whose model weighs nothing: measured, docs/benchmarks/memory-fit.md


class HostMemoryProbe:
    """A ``GpuProbe`` for machines without a GPU."""

    def __init__(self, cgroup: Path = _CGROUP, cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
        self._cgroup = cgroup
        flags = cpu_flags(cpuinfo)
        self._supports_bfloat16 = bool(_BF16_FLAGS & flags)
        self._native_kernels_problem = native_kernels_problem(flags)

    def device(self) -> Device:
        """See ``GpuProbe``."""
        memory = psutil.virtual_memory()
        total, free = memory.total, memory.available
        limit, used = self._limit_and_use()
        if limit is not None:
            total = min(total, limit)
            free = min(free, limit - used)
        return Device(
            kind=DeviceKind.CPU,
            name=platform.processor() or platform.machine(),
            count=1,
            total_bytes=total,
            free_bytes=max(free, 0),
            supports_bfloat16=self._supports_bfloat16,
            overhead_bytes=_OVERHEAD_BYTES,
            native_kernels=not self._native_kernels_problem,
            native_kernels_reason=self._native_kernels_problem,
        )

    def _limit_and_use(self) -> tuple[int | None, int]:
        """The cgroup's limit and what counts against it that cannot be dropped, in bytes; v2, then v1."""
        for limit_file, usage_file, stat_key in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
        ):
            try:
                limit = (self._cgroup / limit_file).read_text(encoding="ascii").strip()
                used = int((self._cgroup / usage_file).read_text(encoding="ascii"))
                stat = (self._cgroup / usage_file).with_name("memory.stat").read_text(encoding="ascii")
            except (OSError, ValueError):
                continue
            if limit == "max" or int(limit) >= 1 << 60:  # v1 writes a huge number for none
                return None, 0
            cache = next((int(line.split()[1]) for line in stat.splitlines() if line.split()[0] == stat_key), 0)
            return int(limit), used - cache
        return None, 0

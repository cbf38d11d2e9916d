"""What this process takes of the memory that its model lives in."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import psutil
import torch

from inferapi.domain.model import DeviceKind

_ROLLUP = Path("/proc/self/smaps_rollup")


def memory_bytes(device: DeviceKind) -> int:
    """Bytes taken now: what the caching allocators of all GPUs hold, or host memory that is this process's own.

    On GPUs the CUDA context is not in the figure. On the host it is what the process has written and shares with
    nobody: what would be free if it ended. The clean pages of libraries, which the unique set (USS) counts or not by
    who else has them open, the kernel takes back whenever it likes.
    """
    if device is DeviceKind.CUDA:
        return sum(torch.cuda.memory_reserved(index) for index in range(torch.cuda.device_count()))
    with suppress(OSError):  # only Linux has it
        return private_dirty_bytes(_ROLLUP.read_text(encoding="ascii"))
    return int(psutil.Process().memory_full_info().uss)


def most_memory_bytes(device: DeviceKind) -> int:
    """The most bytes taken so far, where that is counted (on GPUs); elsewhere those taken now."""
    if device is DeviceKind.CUDA:
        return sum(torch.cuda.max_memory_reserved(index) for index in range(torch.cuda.device_count()))
    return memory_bytes(device)


def private_dirty_bytes(smaps_rollup: str) -> int:
    """What ``/proc/PID/smaps_rollup`` tells of pages that were written and are shared with nobody."""
    return sum(int(line.split()[1]) * 1024 for line in smaps_rollup.splitlines() if line.startswith("Private_Dirty:"))

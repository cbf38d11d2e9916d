"""What this process takes of the memory that its model lives in."""

from __future__ import annotations

import psutil
import torch

from inferapi.domain.model import DeviceKind


def memory_bytes(device: DeviceKind) -> int:
    """Bytes taken now: reserved GPU memory of all GPUs, or what would be free if this process ended (USS)."""
    if device is DeviceKind.CUDA:
        return sum(torch.cuda.memory_reserved(index) for index in range(torch.cuda.device_count()))
    return int(psutil.Process().memory_full_info().uss)


def most_memory_bytes(device: DeviceKind) -> int:
    """The most bytes taken so far, where that is counted (on GPUs); elsewhere those taken now."""
    if device is DeviceKind.CUDA:
        return sum(torch.cuda.max_memory_reserved(index) for index in range(torch.cuda.device_count()))
    return memory_bytes(device)

"""NVIDIA's GPUs as a place for models, read through NVML: no CUDA context, no torch."""

from __future__ import annotations

import logging
import os
from typing import Any

import pynvml

from inferapi.domain.model import Device, DeviceKind

log = logging.getLogger(__name__)

_OVERHEAD_BYTES = 600 * 1024**2  # a worker's CUDA context and kernels, on each GPU; not measured here yet
_BF16_CAPABILITY = (8, 0)


class NvmlGpuProbe:
    """A ``GpuProbe`` for all GPUs of the machine together."""

    @classmethod
    def detect(cls) -> NvmlGpuProbe | None:
        """A probe, if the driver answers and there is a GPU."""
        try:
            pynvml.nvmlInit()
            probe = cls()
            if not probe.handles():
                return None
            probe.device()
        except pynvml.NVMLError as error:
            log.info("no NVIDIA GPU: %s", error)
            return None
        return probe

    def handles(self) -> list[Any]:
        """The GPUs that CUDA programs see: NVML itself knows nothing of ``CUDA_VISIBLE_DEVICES``."""
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        names = [name.strip() for name in visible.split(",") if name.strip()]
        return [
            pynvml.nvmlDeviceGetHandleByIndex(int(name)) if name.isdecimal() else pynvml.nvmlDeviceGetHandleByUUID(name)
            for name in names
            if name != "-1"
        ]

    def device(self) -> Device:
        """See ``GpuProbe``."""
        handles = self.handles()
        memory = [pynvml.nvmlDeviceGetMemoryInfo(handle) for handle in handles]
        return Device(
            kind=DeviceKind.CUDA,
            name=str(pynvml.nvmlDeviceGetName(handles[0])),
            count=len(handles),
            total_bytes=sum(int(info.total) for info in memory),
            free_bytes=sum(int(info.free) for info in memory),
            supports_bfloat16=all(
                tuple(pynvml.nvmlDeviceGetCudaComputeCapability(handle)) >= _BF16_CAPABILITY for handle in handles
            ),
            overhead_bytes=_OVERHEAD_BYTES * len(handles),
        )

"""A folder of weights, read by transformers into a model with the fastest attention kernel that it can have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM
from transformers.utils.import_utils import is_flash_attn_2_available

from inferapi.domain.model import DeviceKind, EngineSpec

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel


def choose_attention(spec: EngineSpec) -> tuple[str, str]:
    """The fastest kernel that device, dtype and installed packages allow, and why."""
    if spec.device is DeviceKind.CPU:
        return "sdpa", "flash-attn runs on NVIDIA GPUs only"
    if spec.dtype not in {"bfloat16", "float16"}:
        return "sdpa", f"flash-attn does not compute in {spec.dtype}"
    if torch.cuda.get_device_capability() < (8, 0):
        return "sdpa", "flash-attn needs a GPU of compute capability 8.0 or later"
    if not is_flash_attn_2_available():
        return "sdpa", "the flash-attn package is not installed"
    return "flash_attention_2", "GPU, dtype and package allow it"


def read_weights(spec: EngineSpec, attention: str, quantization: BitsAndBytesConfig | None) -> PreTrainedModel:
    """The model, with ``attention`` if its class knows that kernel. Raises whatever transformers makes of bad files."""
    placement: dict[str, Any] = {}
    if quantization is not None:
        placement["quantization_config"] = quantization
    if spec.device is DeviceKind.CUDA:
        placement["device_map"] = "auto" if spec.device_count > 1 else {"": 0}
    kernels = dict.fromkeys([attention, "sdpa", "eager"])
    for kernel in kernels:
        try:
            model = AutoModelForCausalLM.from_pretrained(
                spec.path,
                dtype=getattr(torch, spec.dtype),
                attn_implementation=kernel,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                **placement,
            )
        except (ValueError, ImportError) as error:
            # transformers has no other way to say that a class lacks a kernel; other errors come again.
            if kernel == "eager" or kernel not in str(error).lower().replace("scaled_dot_product_attention", "sdpa"):
                raise
        else:
            model.eval()
            return model
    raise AssertionError  # "eager" either returned or raised


def weight_file_bytes(folder: str) -> int:
    """What the weights take on the disk."""
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def weights_bytes(model: PreTrainedModel) -> int:
    """Parameters and buffers, tied ones once."""
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

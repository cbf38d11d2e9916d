"""Quantized weights on a GPU: bitsandbytes', which transformers puts in the place of linear layers while it loads.

``int8`` is LLM.int8 (Dettmers et al. 2022): rare large channels are multiplied in 16 bits. ``int4`` is NF4 (Dettmers et
al. 2023), 64 weights a scale. The output layer stays as it is in both.
"""

from __future__ import annotations

import torch
from transformers import BitsAndBytesConfig
from transformers.utils.import_utils import is_bitsandbytes_available

from inferapi.domain.errors import ModelInvalid
from inferapi.domain.model import DeviceKind, EngineSpec, Quantization


def bitsandbytes_config(spec: EngineSpec) -> BitsAndBytesConfig | None:
    """What ``from_pretrained`` is to be told as ``quantization_config``; ``None`` where nothing is quantized so.

    Raises:
        ModelInvalid: bitsandbytes is not installed.
    """
    if spec.quantization is None or spec.device is not DeviceKind.CUDA:
        return None
    if not is_bitsandbytes_available():
        raise ModelInvalid(
            model=spec.model, problem="it cannot be quantized here: the bitsandbytes package is not installed"
        )
    if spec.quantization == Quantization.INT8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, spec.dtype)
    )

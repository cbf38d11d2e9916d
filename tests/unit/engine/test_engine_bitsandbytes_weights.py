"""What transformers is told about quantization on a GPU; what becomes of it was not run without one."""

from dataclasses import replace

import pytest
import torch

from inferapi.domain.errors import ModelInvalid
from inferapi.domain.model import DeviceKind, EngineSpec
from inferapi.engine import bitsandbytes_weights
from inferapi.engine.bitsandbytes_weights import bitsandbytes_config

SPEC = EngineSpec(
    model="a/model",
    path="/nowhere",
    device=DeviceKind.CUDA,
    device_count=1,
    dtype="bfloat16",
    kv_cache_tokens=1024,
    max_batch=8,
    max_queue=8,
    quantization="int4",
)


@pytest.fixture
def is_installed(monkeypatch) -> None:
    monkeypatch.setattr(bitsandbytes_weights, "is_bitsandbytes_available", lambda: True)


def test_int4_is_nf4_that_computes_in_the_dtype_of_the_model(is_installed) -> None:
    config = bitsandbytes_config(SPEC)

    assert config is not None
    assert config.quantization_method() == "nf4"
    assert config.bnb_4bit_compute_dtype is torch.bfloat16
    assert not config.bnb_4bit_use_double_quant  # 4.5 bits a weight, as estimated


def test_int8_is_llm_int8(is_installed) -> None:
    config = bitsandbytes_config(replace(SPEC, quantization="int8"))

    assert config is not None
    assert config.quantization_method() == "llm_int8"


@pytest.mark.parametrize("change", [{"quantization": None}, {"device": DeviceKind.CPU}])
def test_nothing_is_said_where_bitsandbytes_does_not_quantize(is_installed, change) -> None:
    assert bitsandbytes_config(replace(SPEC, **change)) is None


def test_without_the_package_the_model_is_refused_rather_than_loaded_whole(monkeypatch) -> None:
    monkeypatch.setattr(bitsandbytes_weights, "is_bitsandbytes_available", lambda: False)

    with pytest.raises(ModelInvalid, match="the bitsandbytes package is not installed"):
        bitsandbytes_config(SPEC)

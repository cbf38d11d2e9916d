"""Models of real shapes with random weights, built where they are used: nothing is downloaded or written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel

DTYPE = torch.bfloat16
SHAPES: dict[str, dict[str, Any]] = {
    "1B": {
        "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
    },
    "8B": {
        "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False,
    },
}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "tiny": {
        "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """What a decoding step must read and compute, at least.

    Attributes:
        weights_bytes: all weights; of an embedding that is not the output's matrix too, only rows are read.
        kv_bytes_per_token: keys and values of all layers.
        parameters: each of those is multiplied and added once a token.
    """

    weights_bytes: int
    kv_bytes_per_token: int
    parameters: int


def build(shape: dict[str, Any], device: str) -> PreTrainedModel:
    """A Llama of this shape on the device, in bfloat16; what it answers has no end.

    Raises:
        torch.OutOfMemoryError: the device is too small for it.
    """
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **shape, max_position_embeddings=8192)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPE, attn_implementation="sdpa")
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=None, pad_token_id=0)
    model.config.eos_token_id = None
    return model.eval()


def cost(model: PreTrainedModel) -> Cost:
    """Counted on the model itself."""
    config = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if not config.tie_word_embeddings:
        parameters -= model.get_input_embeddings().weight.numel()
    kv_numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return Cost(parameters * DTYPE.itemsize, kv_numbers * DTYPE.itemsize, parameters)

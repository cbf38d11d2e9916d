"""Real engines for the integration tests: tiny models with random weights, and SmolLM2 once per dtype."""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from inferapi.domain.errors import InferapiError
from inferapi.domain.generation import Finish, SamplingParams
from inferapi.domain.model import DeviceKind, EngineSpec
from inferapi.engine.loop import EngineLoop
from inferapi.engine.model_loader import LoadedModel, load_model
from inferapi.engine.request import Request
from tiny import byte_level_tokenizer, one_thread  # noqa: F401 - a fixture of this folder

END = 256
SHAPE = {
    "vocab_size": 260,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,  # large enough for answers that do not repeat one token
    "eos_token_id": END,
    "bos_token_id": END,
    "pad_token_id": END,
    "tie_word_embeddings": False,
}
NO_HEAD_DIM = {name: value for name, value in SHAPE.items() if name != "head_dim"}
GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 2048}
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
FAMILIES = {
    "llama": {"model_type": "llama", **SHAPE},
    "gpt2": {"model_type": "gpt2", **SHAPE, **GPT2, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **SHAPE},
    "mistral": {"model_type": "mistral", **SHAPE, "sliding_window": 24},
    "gemma3": {
        "model_type": "gemma3_text",
        **SHAPE,
        "sliding_window": 24,
        "layer_types": MIXED,
        "query_pre_attn_scalar": 16,
    },
    "gemma2": {
        "model_type": "gemma2",
        **SHAPE,
        "sliding_window": 24,
        "layer_types": MIXED,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 2.0,
    },
    "mamba": {"model_type": "mamba", **SHAPE, "state_size": 8, "initializer_range": 0.1},
    "bloom": {"model_type": "bloom", **SHAPE, "n_layer": 3, "n_head": 4},
    "falcon": {"model_type": "falcon", **NO_HEAD_DIM, "alibi": True, "new_decoder_architecture": False},
    "dynamic-llama": {
        "model_type": "llama",
        **SHAPE,
        "rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0},
    },
    "qwen2": {"model_type": "qwen2", **SHAPE},
    "gemma": {"model_type": "gemma", **SHAPE, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True},
    "phi3": {"model_type": "phi3", **SHAPE},
    "olmo2": {"model_type": "olmo2", **SHAPE},
    "mixtral": {"model_type": "mixtral", **SHAPE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt-neox": {"model_type": "gpt_neox", **SHAPE},
    "starcoder2": {"model_type": "starcoder2", **SHAPE},
    "gelu-llama": {"model_type": "llama", **SHAPE, "hidden_act": "gelu", "attention_bias": True, "mlp_bias": True},
    "mamba2": {
        "model_type": "mamba2",
        **SHAPE,
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 16,
        "n_groups": 1,
        "initializer_range": 0.1,
    },
}
"""The first six run in batches; the four after them keep their state in ways that the paged cache cannot hold."""


def write_tokenizer(folder: Path) -> None:
    """One token a byte, and an end token."""
    backend = byte_level_tokenizer()
    backend.add_special_tokens(["<|end|>"])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>").save_pretrained(folder)


@pytest.fixture(scope="session")
def write_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a model with random weights; ``change`` may spoil it before."""

    def write(family: str, change: Callable[[PreTrainedModel], None] | None = None) -> Path:
        folder = tmp_path_factory.mktemp(family)
        config = dict(FAMILIES[family])
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
        if change is not None:
            with torch.no_grad():
                change(model)
        model.save_pretrained(folder)
        write_tokenizer(folder)
        return folder

    return write


@dataclass
class Tiny:
    """A tiny model as the engine runs it, and as transformers does."""

    model: LoadedModel
    reference: PreTrainedModel


@pytest.fixture(scope="session")
def load() -> Callable[..., LoadedModel]:
    """Loads a folder in float32 on one thread, unless told otherwise."""

    def load_folder(folder: Path, **spec: object) -> LoadedModel:
        defaults = {
            "model": folder.name,
            "path": str(folder),
            "device": DeviceKind.CPU,
            "device_count": 1,
            "dtype": "float32",
            "kv_cache_tokens": 4096,
            "max_batch": 8,
            "max_queue": 16,
            "threads": 1,
        }
        return load_model(EngineSpec(**{**defaults, **spec}))

    return load_folder


@pytest.fixture(scope="session")
def tiny(write_model, load) -> Callable[[str], Tiny]:
    """A family's model, loaded when first asked for."""

    @functools.cache
    def load_family(family: str) -> Tiny:
        folder = write_model(family)
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        reference.generation_config = GenerationConfig()  # generate fills what is left open from here
        return Tiny(load(folder), reference.eval())

    return load_family


@dataclass
class Answers:
    """What came out of a loop, by request."""

    pieces: dict[int, list[str]] = field(default_factory=dict)
    finish: dict[int, Finish] = field(default_factory=dict)

    def text(self, request: Request) -> str:
        return "".join(self.pieces.get(request.request_id, []))


Drive = Callable[..., Answers]


@pytest.fixture
def drive() -> Drive:
    """Steps a loop until it is idle, or as often as told; an error of any request is raised."""

    def run(loop: EngineLoop, requests: Sequence[Request] = (), steps: int | None = None) -> Answers:
        for request in requests:
            loop.submit(request)
        answers = Answers()
        for _ in itertools.count() if steps is None else range(steps):
            if loop.is_idle:
                break
            for output in loop.step():
                if isinstance(output.item, InferapiError):
                    raise output.item
                answers.pieces.setdefault(output.request_id, []).append(output.item.text)
                if output.item.finish:
                    answers.finish[output.request_id] = output.item.finish
        return answers

    return run


@pytest.fixture
def new_request() -> Callable[..., Request]:
    """Makes requests: greedy, without penalty, of a given length, unless told otherwise."""
    ids = itertools.count()

    def make(prompt: Sequence[int], max_new_tokens: int = 20, **sampling: object) -> Request:
        params = {"temperature": 0.0, "repetition_penalty": 1.0, "ignore_eos": True, **sampling}
        return Request(
            next(ids), list(prompt), len(prompt), SamplingParams(max_new_tokens=max_new_tokens, **params), arrived_s=0.0
        )

    return make


@pytest.fixture(scope="session")
def prompt_of() -> Callable[..., list[int]]:
    """Random prompts of a length, the same at every run."""

    def make(length: int, seed: int = 0) -> list[int]:
        generator = torch.Generator().manual_seed(1000 * length + seed)
        return torch.randint(0, END, (length,), generator=generator).tolist()

    return make


@pytest.fixture(scope="session")
def generate() -> Callable[..., list[int]]:
    """What transformers' own greedy ``generate`` answers, the end token being one like any other."""

    def answer(reference: PreTrainedModel, prompt: Sequence[int], max_new_tokens: int = 20) -> list[int]:
        ids = torch.tensor([list(prompt)])
        config = GenerationConfig(
            do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=None, pad_token_id=0, use_cache=True
        )
        with torch.inference_mode():
            out = reference.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        return out[0, len(prompt) :].tolist()

    return answer


@pytest.fixture(scope="session")
def answer_of() -> Callable[[Request], list[int]]:
    """The token ids that a request generated."""
    return lambda request: request.tokens[request.num_prompt_tokens :]


@pytest.fixture(scope="session")
def smollm2(demo_folder, load) -> Callable[[str], LoadedModel]:
    """The demo model, loaded at most once a dtype."""
    return functools.cache(lambda dtype: load(demo_folder, dtype=dtype, max_batch=16))

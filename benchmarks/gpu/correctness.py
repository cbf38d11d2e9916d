"""The engine's answers on a device beside transformers' own, on tiny models with random weights.

In float32 every token must be that of ``generate``. In bfloat16 roundings differ, and a token that is nearly as likely
may come instead: each must be likely enough by what transformers computes for the same answer.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast

from inferapi.domain.errors import InferapiError
from inferapi.domain.generation import SamplingParams
from inferapi.domain.model import PREFILL_CHUNK_TOKENS, DeviceKind, EngineSpec
from inferapi.engine.kv_cache import BLOCK_TOKENS
from inferapi.engine.loop import EngineLoop
from inferapi.engine.model_loader import load_model
from inferapi.engine.request import Request

END = 256
SHAPE: dict[str, Any] = {
    "vocab_size": 260, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096, "tie_word_embeddings": False,
    "initializer_range": 0.3,  # large enough for answers that do not repeat one token
    "eos_token_id": END, "bos_token_id": END, "pad_token_id": END,
}  # fmt: skip
FAMILIES = {"Llama": "llama", "Qwen": "qwen3"}
MOST_NATS_BELOW = 0.5
"""A token chosen in bfloat16 may be so much less likely than the likeliest, in logarithms."""


@dataclass(frozen=True)
class Check:
    """One thing that must be so; ``detail`` says what was found."""

    name: str
    passed: bool
    detail: str


@dataclass
class Engine:
    """A tiny model as the engine runs it, and as transformers does."""

    loop: EngineLoop
    reference: PreTrainedModel
    batching: str
    ids: Iterator[int] = field(default_factory=itertools.count)

    def submit(self, prompt: Sequence[int], new_tokens: int) -> Request:
        """Begin a greedy answer of so many tokens."""
        sampling = SamplingParams(max_new_tokens=new_tokens, temperature=0.0, repetition_penalty=1.0, ignore_eos=True)
        request = Request(next(self.ids), list(prompt), len(prompt), sampling, 0.0)
        self.loop.submit(request)
        return request

    def run(self, steps: int | None = None) -> None:
        """So many steps, or all there are."""
        for _ in itertools.count() if steps is None else range(steps):
            if self.loop.is_idle:
                return
            for output in self.loop.step():
                if isinstance(output.item, InferapiError):
                    raise output.item

    def expected(self, request: Request) -> list[int]:
        """The prompt of a request and what ``generate`` answers to it."""
        ids = torch.tensor([request.tokens[: request.num_prompt_tokens]], device=self.reference.device)
        config = GenerationConfig(
            do_sample=False, max_new_tokens=request.sampling.max_new_tokens, eos_token_id=None, pad_token_id=0
        )
        answer = self.reference.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        tokens: list[int] = answer[0].tolist()
        return tokens

    @torch.inference_mode()
    def nats_below(self, request: Request) -> float:
        """How much less likely than the likeliest the worst of its tokens is to transformers, in logarithms."""
        ids = torch.tensor([request.tokens], device=self.reference.device)
        log_probabilities = self.reference(input_ids=ids[:, :-1], use_cache=False).logits[0].float().log_softmax(-1)
        answer = log_probabilities[request.num_prompt_tokens - 1 :]
        chosen = answer.gather(1, ids[0, request.num_prompt_tokens :, None])[:, 0]
        return float((answer.amax(-1) - chosen).max())


def check(device: str) -> Iterator[Check]:
    """All checks, one after the other."""
    for family, model_type in FAMILIES.items():
        with tempfile.TemporaryDirectory() as folder:
            _write(model_type, Path(folder))
            for dtype in ("float32", "bfloat16"):
                engine = _load(Path(folder), device, dtype)
                name = f"{family}-shaped, {dtype}"
                yield Check(f"{name}: runs in batches", engine.batching == "continuous", engine.batching)
                for what, requests in _answers(engine, DeviceKind(device)):
                    yield _compare(f"{name}: {what}", engine, requests, dtype)


def _answers(engine: Engine, kind: DeviceKind) -> Iterator[tuple[str, list[Request]]]:
    alone = []
    for length in (1, 30, BLOCK_TOKENS, 700):
        alone.append(engine.submit(_prompt(length), 20))
        engine.run()
    yield "alone", alone

    batch = [engine.submit(_prompt(length), 40 - length % 20) for length in (40, 7, 90, 33, 64, 2, 150)]
    engine.run(steps=3)
    batch += [engine.submit(_prompt(length), 25) for length in (300, 1)]  # while the others decode
    engine.run()
    yield "in a batch that others join and leave", batch

    many = [engine.submit(_prompt(5 + nth, nth), 8 + nth % 5) for nth in range(40)]  # as many rows as a graph has
    engine.run()
    yield "40 at once", many

    chunked = [engine.submit(_prompt(PREFILL_CHUNK_TOKENS[kind] + 100), 12), engine.submit(_prompt(20, 1), 30)]
    engine.run(steps=4)
    chunked.append(engine.submit(_prompt(1300, 2), 12))
    engine.run()
    yield "prompts in chunks, alone and beside decodes", chunked

    first = engine.submit(_prompt(200, 3), 20)
    engine.run()
    turns = [engine.submit([*first.tokens, *_prompt(30, nth)], 20) for nth in range(2)]
    engine.run()
    least = first.num_prompt_tokens // BLOCK_TOKENS * BLOCK_TOKENS
    if any(turn.num_cached_tokens < least for turn in turns):
        raise AssertionError("the beginning of a chat's next turn was computed again")
    yield "next turns that find their beginning computed", [first, *turns]


def _compare(name: str, engine: Engine, requests: Sequence[Request], dtype: str) -> Check:
    if dtype == "float32":
        wrong = [request for request in requests if request.tokens != engine.expected(request)]
        told = f"{len(requests) - len(wrong)} of {len(requests)} answers equal token for token"
        return Check(name, not wrong, told)
    worst = max(engine.nats_below(request) for request in requests)
    return Check(
        name, worst <= MOST_NATS_BELOW, f"{len(requests)} answers, worst token {worst:.3f} nats below the best"
    )


def _prompt(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(10_000 * length + seed)
    tokens: list[int] = torch.randint(0, END, (length,), generator=generator).tolist()
    return tokens


def _write(model_type: str, folder: Path) -> None:
    """A model with random weights, and a tokenizer of one token a byte."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **SHAPE)).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")  # noqa: S106 - a token of text
    tokenizer.save_pretrained(folder)


def _load(folder: Path, device: str, dtype: str) -> Engine:
    spec = EngineSpec(
        model="tiny",
        path=str(folder),
        device=DeviceKind(device),
        device_count=1,
        dtype=dtype,
        kv_cache_tokens=16_384,
        max_batch=64,
        max_queue=64,
    )
    loaded = load_model(spec)
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
    reference.generation_config = GenerationConfig()  # generate fills what is left open from here
    return Engine(loaded.loop, reference, loaded.facts.batching_reason or loaded.facts.batching)

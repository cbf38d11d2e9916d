"""Three ways to serve the same weights on the same device; each takes prompts and says how long the answers took."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from transformers import AttentionInterface, ContinuousBatchingConfig, GenerationConfig, PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available

from inferapi.domain.errors import InferapiError
from inferapi.domain.generation import SamplingParams
from inferapi.domain.model import PREFILL_CHUNK_TOKENS, DeviceKind
from inferapi.engine.block_pool import BlockPool
from inferapi.engine.kv_cache import BLOCK_TOKENS
from inferapi.engine.loop import EngineLoop
from inferapi.engine.paging import make_batched_runner
from inferapi.engine.request import Request
from inferapi.engine.scheduler import Scheduler

Prompts = Sequence[list[int]]
TakenS = Callable[[Prompts, int], float]
"""Seconds from when all prompts are there to when all answers are, of so many tokens each."""

Contender = Callable[[PreTrainedModel, int, int], AbstractContextManager[TakenS]]
"""Made for a model, the most streams at once, and the most tokens of one of them."""

_STEP_TOKENS = 512  # as on a GPU in model_loader.py
_PATIENCE_S = 300.0


@contextmanager
def inferapi(model: PreTrainedModel, streams: int, tokens: int) -> Iterator[TakenS]:
    """This engine, without a server around it."""
    kind = DeviceKind(model.device.type)
    model.set_attn_implementation("sdpa")
    num_blocks = streams * -(-tokens // BLOCK_TOKENS)
    paged = make_batched_runner(model, num_blocks, flash=kind is DeviceKind.CUDA and is_flash_attn_2_available())
    scheduler = Scheduler(
        max_slots=streams,
        max_waiting=streams,
        step_tokens=_STEP_TOKENS,
        idle_step_tokens=PREFILL_CHUNK_TOKENS[kind],
        pool=BlockPool(paged.num_blocks, BLOCK_TOKENS),
    )
    loop = EngineLoop(scheduler, paged.runner, decode=lambda ids: " ".join(map(str, ids)), eos_token_ids=())
    ids = itertools.count()

    def taken_s(prompts: Prompts, new_tokens: int) -> float:
        sampling = SamplingParams(max_new_tokens=new_tokens, temperature=0.0, repetition_penalty=1.0, ignore_eos=True)
        started_s = time.perf_counter()
        for prompt in prompts:
            loop.submit(Request(next(ids), list(prompt), len(prompt), sampling, time.monotonic()))
        while not loop.is_idle:
            for output in loop.step():
                if isinstance(output.item, InferapiError):
                    raise output.item
        return time.perf_counter() - started_s

    try:
        yield taken_s
    finally:  # transformers keeps it, and so the cache, for as long as the process lives: one model's, as a rule
        AttentionInterface._global_mapping.pop(model.config._attn_implementation)  # noqa: SLF001


@contextmanager
def generate(model: PreTrainedModel, _streams: int, _tokens: int) -> Iterator[TakenS]:
    """``model.generate`` of one batch, as it comes: prompts are of one length, so nothing is padded."""
    model.set_attn_implementation("sdpa")

    def taken_s(prompts: Prompts, new_tokens: int) -> float:
        config = GenerationConfig(
            do_sample=False, eos_token_id=None, pad_token_id=0, max_new_tokens=new_tokens, min_new_tokens=new_tokens
        )
        started_s = time.perf_counter()
        input_ids = torch.tensor(prompts, device=model.device)
        answers = model.generate(input_ids, attention_mask=torch.ones_like(input_ids), generation_config=config)
        answers.tolist()  # waits for the device
        return time.perf_counter() - started_s

    yield taken_s


@contextmanager
def continuous_batching(model: PreTrainedModel, streams: int, tokens: int) -> Iterator[TakenS]:
    """Continuous batching of transformers, as it sets itself up: flash attention and CUDA graphs where it can.

    Only a CPU is told how much memory to take.
    """
    model.set_attn_implementation("sdpa")
    batching = ContinuousBatchingConfig()
    if model.device.type == "cpu":
        batching = ContinuousBatchingConfig(num_blocks=streams * -(-tokens // 256) + 1, max_batch_tokens=1024)
    config = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=tokens)
    with model.continuous_batching_context_manager(
        generation_config=config, continuous_batching_config=batching, timeout=30
    ) as manager:

        def taken_s(prompts: Prompts, new_tokens: int) -> float:
            started_s = time.perf_counter()
            waited_for = set(manager.add_requests([list(prompt) for prompt in prompts], max_new_tokens=new_tokens))
            while waited_for:
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    if result.error is not None or len(result.generated_tokens) != new_tokens:
                        raise RuntimeError(f"{result.error or f'{len(result.generated_tokens)} tokens came'}")
                    waited_for.discard(result.request_id)
                elif not manager.is_running() or time.perf_counter() - started_s > _PATIENCE_S:
                    raise RuntimeError("its thread ended, or answers nothing")
            return time.perf_counter() - started_s

        yield taken_s


ENGINE, GENERATE, CONTINUOUS_BATCHING = "inferapi", "generate", "continuous batching"
CONTENDERS: dict[str, Contender] = {
    ENGINE: inferapi,
    GENERATE: generate,
    CONTINUOUS_BATCHING: continuous_batching,
}

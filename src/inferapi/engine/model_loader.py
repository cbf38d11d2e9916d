"""A folder of weights becomes an engine: dtype, device, attention kernel, cache, and a check that it is right."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from inferapi.domain.errors import ModelInvalid
from inferapi.domain.model import PREFILL_CHUNK_TOKENS, DeviceKind, EngineFacts, EngineSpec
from inferapi.domain.states import ModelState, Report
from inferapi.engine.bitsandbytes_weights import bitsandbytes_config
from inferapi.engine.block_pool import BlockPool
from inferapi.engine.constraints import Constrainer
from inferapi.engine.embedder import Embedder
from inferapi.engine.fusing import packed_products
from inferapi.engine.kv_cache import BLOCK_TOKENS
from inferapi.engine.load_progress import weights_reported
from inferapi.engine.loop import EngineLoop, is_out_of_memory
from inferapi.engine.model_kernels import pack_for_kernels, use_native_threads
from inferapi.engine.model_runner import NATIVE_CHUNK_TOKENS, NATIVE_STEP_TOKENS, Runner
from inferapi.engine.model_tokenizer import decoder, eos_token_ids, grammar_tokenizer, read_tokenizer
from inferapi.engine.paging import NotPageableError, Paged, make_batched_runner
from inferapi.engine.process_memory import memory_bytes
from inferapi.engine.prompt_encoder import PromptEncoder
from inferapi.engine.scheduler import Scheduler
from inferapi.engine.sequential_runner import SequentialRunner
from inferapi.engine.tag_tokens import tag_tokens, with_tags
from inferapi.engine.token_bytes import TokenBytes
from inferapi.engine.weights import choose_attention, read_weights, weight_file_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_STEP_TOKENS = {DeviceKind.CPU: 128, DeviceKind.CUDA: 512}
_ATTENTION_RATE = 0.7  # of the native kernels' rate in linear layers, measured
_LARGE_BYTES = 2 * 1000**3


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready: its step loop, its prompts, its constraints, its vectors, and what it became."""

    loop: EngineLoop
    encoder: PromptEncoder
    constrainer: Constrainer
    embedder: Embedder
    facts: EngineFacts
    threads: int = 1
    use_threads: Callable[[int], None] = torch.set_num_threads
    waits_for_threads: bool = True  # one that has no core holds up the others


def _unheard(_stage: ModelState, _done_bytes: int, _total_bytes: int) -> None:
    """A ``Report`` to nobody."""


def load_model(spec: EngineSpec, report: Report = _unheard) -> LoadedModel:
    """Load what ``spec`` names, and tell ``report`` how far it is.

    Whatever fails for want of memory is raised as it came: ``is_out_of_memory`` knows it.

    Raises:
        ModelInvalid: the folder does not hold a decoder-only language model with a tokenizer.
    """
    threads = spec.threads or torch.get_num_threads()
    # A load is a thousand tiny computations. Threads that wait for each other at each of them gain nothing, and
    # where other processes want the same cores they lose everything: 20 s were measured instead of 0.9 s.
    torch.set_num_threads(1 if weight_file_bytes(spec.path) < _LARGE_BYTES else threads)
    try:
        model = _load(spec, report)
    finally:
        torch.set_num_threads(threads)
    model.use_threads(threads)
    return replace(model, threads=threads)


def _load(spec: EngineSpec, report: Report) -> LoadedModel:
    started_s = time.monotonic()
    attention, attention_reason = choose_attention(spec)
    tokenizer, model = _read(spec, attention, report)
    kernels = pack_for_kernels(spec, model, report)
    own_attention = str(model.config._attn_implementation)  # noqa: SLF001 - there is no public name for it
    flash = attention == "flash_attention_2"
    if own_attention != attention:
        attention, attention_reason = own_attention, f"the model's class supports no faster kernel than {own_attention}"
    ends = eos_token_ids(model, tokenizer)  # before the sequential runner empties the generation config
    runner: Runner
    paged: Paged | None
    try:
        paged = make_batched_runner(
            model,
            max(spec.kv_cache_tokens // BLOCK_TOKENS, 1),
            flash=flash,
            kernels=kernels.native,
            max_step_tokens=PREFILL_CHUNK_TOKENS[spec.device] + spec.max_batch,
        )
        runner, batching_reason = paged.runner, ""
        if paged.needs_plain_formula:
            attention, attention_reason = "eager", "the model caps its scores or uses attention sinks"
    except NotPageableError as error:
        runner, paged, batching_reason = SequentialRunner(model), None, str(error)
    pool = BlockPool(paged.num_blocks, BLOCK_TOKENS) if paged else None
    context_window = _context_window(model, tokenizer, pool, spec)
    scheduler = _scheduler(spec, model, paged, pool, context_window)
    report(ModelState.WARMING, kernels.weights_bytes, kernels.weights_bytes)
    encoder = PromptEncoder(tokenizer, context_window)
    tags = tag_tokens(tokenizer, encoder.facts.reasoning_tags)
    loop = EngineLoop(
        scheduler,
        runner,
        decode=with_tags(decoder(tokenizer), tags),
        eos_token_ids=ends,
        bytes_of=TokenBytes(tokenizer).of,
        vocabulary_tokens=getattr(model.config.get_text_config(decoder=True), "vocab_size", None),
    )
    embedder = Embedder(model, name=spec.model, folder=spec.path, attention=own_attention)
    taken_bytes = memory_bytes(spec.device)
    facts = EngineFacts(
        model=spec.model,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        attention=attention,
        attention_reason=attention_reason,
        batching="continuous" if pool else "sequential",
        batching_reason=batching_reason,
        context_window_tokens=context_window,
        kv_cache_tokens=pool.capacity_tokens if pool else 0,
        weights_bytes=kernels.weights_bytes,
        memory_bytes=taken_bytes,
        load_s=time.monotonic() - started_s,
        peak_memory_bytes=taken_bytes,  # at least; whoever looked meanwhile knows better
        quantization=spec.quantization,
        kernels=kernels.name,
        kernels_reason=kernels.reason,
        tool_format=encoder.facts.tool_format,
        reasoning_tags=encoder.facts.reasoning_tags,
        reasons_from_start=encoder.facts.reasons_from_start,
        tag_tokens=tags,
        embeds=not embedder.refusal,
        embedding_dimensions=embedder.dimensions,
    )
    constrainer = Constrainer(partial(grammar_tokenizer, spec.path, tokenizer, ends))
    loaded = LoadedModel(loop, encoder, constrainer, embedder, facts)
    if kernels.native is not None and paged and paged.is_native:
        return replace(loaded, use_threads=partial(use_native_threads, kernels.native), waits_for_threads=False)
    return loaded


def _read(spec: EngineSpec, attention: str, report: Report) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
    """What is in the folder, or ``ModelInvalid``."""
    quantization = bitsandbytes_config(spec)
    try:
        tokenizer = read_tokenizer(spec.path)
        with weights_reported(spec.path, report):
            model = read_weights(spec, attention, quantization)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelInvalid(
            model=spec.model, problem=f"transformers refused its files ({type(error).__name__})"
        ) from error
    if model.config.is_encoder_decoder:
        raise ModelInvalid(model=spec.model, problem="it is an encoder-decoder, not a decoder-only language model")
    return tokenizer, model


def _scheduler(
    spec: EngineSpec, model: PreTrainedModel, paged: Paged | None, pool: BlockPool | None, context_window: int
) -> Scheduler:
    if paged is None:
        return Scheduler(
            max_slots=1,
            max_waiting=spec.max_queue,
            step_tokens=context_window,
            idle_step_tokens=context_window,
            pool=None,
        )
    step_tokens, idle_step_tokens = _STEP_TOKENS[spec.device], PREFILL_CHUNK_TOKENS[spec.device]
    chunk_tokens = costly_context_tokens = None
    if paged.is_native:
        step_tokens = idle_step_tokens = NATIVE_STEP_TOKENS
        chunk_tokens = NATIVE_CHUNK_TOKENS
        if paged.attention_products:
            costly_context_tokens = _ATTENTION_RATE * packed_products(model) / paged.attention_products
    return Scheduler(
        max_slots=spec.max_batch,
        max_waiting=spec.max_queue,
        step_tokens=step_tokens,
        idle_step_tokens=idle_step_tokens,
        pool=pool,
        chunk_tokens=chunk_tokens,
        costly_context_tokens=costly_context_tokens,
    )


def _context_window(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pool: BlockPool | None, spec: EngineSpec
) -> int:
    config = model.config.get_text_config(decoder=True)
    limits = (
        getattr(config, "max_position_embeddings", None),
        tokenizer.model_max_length,
        pool.capacity_tokens if pool else spec.kv_cache_tokens,
    )
    return min(int(limit) for limit in limits if limit is not None and limit > 0)

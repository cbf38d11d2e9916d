"""A folder of weights becomes an engine: dtype, device, attention kernel, cache, and a check that it is right."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from llguidance.hf import from_tokenizer
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils.import_utils import is_flash_attn_2_available

from inferapi.domain.errors import ModelInvalid
from inferapi.domain.model import PREFILL_CHUNK_TOKENS, DeviceKind, EngineFacts, EngineSpec
from inferapi.domain.states import ModelState, Report
from inferapi.engine.bitsandbytes_weights import bitsandbytes_config
from inferapi.engine.block_pool import BlockPool
from inferapi.engine.constraints import Constrainer
from inferapi.engine.embedder import Embedder
from inferapi.engine.fusing import fuse, packed_bytes, packed_products
from inferapi.engine.kv_cache import BLOCK_TOKENS
from inferapi.engine.load_progress import weights_reported
from inferapi.engine.loop import EngineLoop, is_out_of_memory
from inferapi.engine.model_runner import NATIVE_CHUNK_TOKENS, NATIVE_STEP_TOKENS, Runner
from inferapi.engine.native.kernels import Kernels, load_kernels
from inferapi.engine.native.library import NoKernelsError
from inferapi.engine.packing import can_pack, largest_list, module_bytes, pack_linears
from inferapi.engine.paging import NotPageableError, Paged, make_batched_runner
from inferapi.engine.process_memory import memory_bytes
from inferapi.engine.prompt_encoder import PromptEncoder
from inferapi.engine.scheduler import Scheduler
from inferapi.engine.sequential_runner import SequentialRunner
from inferapi.engine.tag_tokens import tag_tokens, with_tags
from inferapi.engine.token_bytes import TokenBytes

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

_STEP_TOKENS = {DeviceKind.CPU: 128, DeviceKind.CUDA: 512}
_ATTENTION_RATE = 0.7  # of the native kernels' rate in linear layers, measured
_LARGE_BYTES = 2 * 1000**3
_TOKENIZER_BYTES, _TOKENIZER_FILE_FACTOR = 32 * 1024**2, 32  # twice what SmolLM2's takes, whose file has 2 MB


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
    torch.set_num_threads(1 if _weight_file_bytes(spec.path) < _LARGE_BYTES else threads)
    try:
        model = _load(spec, report)
    finally:
        torch.set_num_threads(threads)
    model.use_threads(threads)
    return replace(model, threads=threads)


def _load(spec: EngineSpec, report: Report) -> LoadedModel:
    started_s = time.monotonic()
    attention, attention_reason = _choose_attention(spec)
    quantization = bitsandbytes_config(spec)
    try:
        _require_room_for_tokenizer(spec.path)
        tokenizer = AutoTokenizer.from_pretrained(spec.path, trust_remote_code=False, local_files_only=True)
        with weights_reported(spec.path, report):
            model = _read_weights(spec, attention, quantization)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise ModelInvalid(
            model=spec.model, problem=f"transformers refused its files ({type(error).__name__})"
        ) from error
    if model.config.is_encoder_decoder:
        raise ModelInvalid(model=spec.model, problem="it is an encoder-decoder, not a decoder-only language model")

    weights_bytes = _weights_bytes(model)
    report(ModelState.WARMING, 0, weights_bytes)
    kernels, kernels_name, kernels_reason = _choose_kernels(spec, model)
    if kernels is not None:
        fuse(model, kernels, spec.quantization, _packing_reported(weights_bytes, report))
        weights_bytes = _weights_bytes(model) + packed_bytes(model)
    elif kernels_name == "onednn":
        _pack(model, weights_bytes, report)
    flash = attention == "flash_attention_2"
    if model.config._attn_implementation != attention:  # noqa: SLF001 - there is no public name for it
        attention = str(model.config._attn_implementation)  # noqa: SLF001
        attention_reason = f"the model's class supports no faster kernel than {attention}"
    eos_token_ids = _eos_token_ids(model, tokenizer)  # before the sequential runner empties the generation config
    own_attention = model.config._attn_implementation  # noqa: SLF001 - there is no public name for it
    runner: Runner
    paged: Paged | None
    try:
        paged = make_batched_runner(
            model,
            max(spec.kv_cache_tokens // BLOCK_TOKENS, 1),
            flash=flash,
            kernels=kernels,
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
    report(ModelState.WARMING, weights_bytes, weights_bytes)
    encoder = PromptEncoder(tokenizer, context_window)
    tags = tag_tokens(tokenizer, encoder.facts.reasoning_tags)
    decode = with_tags(_decoder(tokenizer), tags)
    loop = EngineLoop(
        scheduler,
        runner,
        decode=decode,
        eos_token_ids=eos_token_ids,
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
        weights_bytes=weights_bytes,
        memory_bytes=taken_bytes,
        load_s=time.monotonic() - started_s,
        peak_memory_bytes=taken_bytes,  # at least; whoever looked meanwhile knows better
        quantization=spec.quantization,
        kernels=kernels_name,
        kernels_reason=kernels_reason,
        tool_format=encoder.facts.tool_format,
        reasoning_tags=encoder.facts.reasoning_tags,
        reasons_from_start=encoder.facts.reasons_from_start,
        tag_tokens=tags,
        embeds=not embedder.refusal,
    )
    constrainer = Constrainer(partial(_grammar_tokenizer, spec.path, tokenizer, eos_token_ids))
    loaded = LoadedModel(loop, encoder, constrainer, embedder, facts)
    if kernels is not None and paged and paged.is_native:
        return replace(loaded, use_threads=partial(_use_native_threads, kernels), waits_for_threads=False)
    return loaded


def _use_native_threads(kernels: Kernels, threads: int) -> None:
    """For a model whose steps are native, PyTorch gets no threads but the caller's.

    OpenMP's threads go on spinning for milliseconds after the little that a step leaves to PyTorch, on the cores that
    the kernels' threads want: 12 to 15 ms of a step of 8 and 32 requests were lost so.
    """
    torch.set_num_threads(1)
    kernels.wanted_threads = threads


def _require_room_for_tokenizer(folder: str) -> None:
    """Map what a tokenizer may take, and let go of it: ``OSError`` if that fails, where Rust would end the process."""
    file = Path(folder, "tokenizer.json")
    file_bytes = file.stat().st_size if file.is_file() else 0
    mmap.mmap(-1, _TOKENIZER_BYTES + _TOKENIZER_FILE_FACTOR * file_bytes).close()


def _grammar_tokenizer(folder: str, tokenizer: PreTrainedTokenizerBase, eos_token_ids: Collection[int]) -> LLTokenizer:
    """The tokenizer as constraints need it; it takes as much memory again, in Rust.

    Raises:
        TypeError: it is none of the fast ones.
        ValueError: it has no bytes for its tokens.
    """
    _require_room_for_tokenizer(folder)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TypeError(type(tokenizer).__name__)
    ends = sorted(token for token in eos_token_ids if token < len(tokenizer))
    return from_tokenizer(tokenizer, eos_token=ends or None)


def _choose_attention(spec: EngineSpec) -> tuple[str, str]:
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


def _read_weights(spec: EngineSpec, attention: str, quantization: BitsAndBytesConfig | None) -> PreTrainedModel:
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


def _choose_kernels(spec: EngineSpec, model: PreTrainedModel) -> tuple[Kernels | None, str, str]:
    """What computes matrix products on a CPU, its name, and why nothing faster does."""
    if spec.device is not DeviceKind.CPU:
        return None, "", ""
    reason = f"the native kernels compute in bfloat16, not in {str(model.dtype).removeprefix('torch.')}"
    if model.dtype is torch.bfloat16:
        try:
            return load_kernels(), "native", ""
        except NoKernelsError as error:
            reason = str(error)
    if spec.quantization is not None:
        raise ModelInvalid(model=spec.model, problem=f"it cannot be quantized here: {reason}")
    return None, "onednn" if can_pack(model.dtype) else "torch", reason


def _pack(model: PreTrainedModel, weights_bytes: int, report: Report) -> None:
    """Pack layer by layer for oneDNN."""
    reported = _packing_reported(weights_bytes, report)
    for layer in largest_list(model):
        reported(layer)
        pack_linears(layer)
    pack_linears(model)  # what is not in a layer


def _packing_reported(weights_bytes: int, report: Report) -> Callable[[nn.Module], None]:
    """To be told of each layer before it is packed: weights that were only mapped are read from the disk there."""
    done_bytes = 0

    def begins(layer: nn.Module) -> None:
        nonlocal done_bytes
        report(ModelState.WARMING, min(done_bytes, weights_bytes), weights_bytes)
        done_bytes += module_bytes(layer)

    return begins


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


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Collection[int]:
    """Every token that the model or its tokenizer calls an end."""
    ids: set[Any] = set()
    for source in (model.generation_config, model.config, tokenizer):
        value = getattr(source, "eos_token_id", None)
        ids |= set(value if isinstance(value, list) else [value])
    return {token for token in ids if isinstance(token, int)}


def _decoder(tokenizer: PreTrainedTokenizerBase) -> Any:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # the same text without the Python around it, which costs more than the decoding
        return lambda ids: backend.decode(list(ids), skip_special_tokens=True)
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _weight_file_bytes(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))


def _weights_bytes(model: PreTrainedModel) -> int:
    """Parameters and buffers, tied ones once."""
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())

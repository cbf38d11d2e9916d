"""Hold the fit check against real workers: memory after the load, and at the peak of full batches of long prompts.

    python benchmarks/memory_fit.py [--write docs/benchmarks/memory-fit.md]

Memory is what the worker has written and shares with nobody (``Private_Dirty``): what would be free if it ended.
Clean pages of libraries are left out, which the unique set (USS) counts or not by who else has them open: the kernel
calls them available, and so does the probe. Tiny models with random weights show what does not depend on the size,
the demo model what does.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from inferapi.adapters import model_profile
from inferapi.adapters.host_memory import HostMemoryProbe
from inferapi.adapters.model_files import read_header, read_json
from inferapi.application import memory_fit
from inferapi.domain.generation import GenerationRequest, Prompt, SamplingParams
from inferapi.domain.model import EngineFacts, EngineSpec, FitReport, LoadOptions, ModelRef
from inferapi.domain.ports import TextEngine
from inferapi.engine.process_memory import private_dirty_bytes
from inferapi.worker.launcher import ForkServerLauncher

MIB = 1024**2
DEMO = "HuggingFaceTB/SmolLM2-135M-Instruct"
MODELS = Path(__file__).parents[1] / "models"
MAX_BATCH = 8
NEW_TOKENS = 160
INTERVAL_S = 0.02
ROOM = memory_fit.Room(2**40, 2**40, 0)
NO_ROOM = memory_fit.Room(2**40, 0, 0)  # makes the KV cache as short as it gets: 2048 tokens
WORDS = "the of and to in a is that it was for on are as with his they at be this from I have or by one had not".split()  # noqa: SIM905 - a sentence reads best

NOTES = """Outside of 15 % at the peak are models of mere kilobytes. Compiled kernels and what the
heap keeps are nearly all that they take.
The peak of bloom in bfloat16 differs from run to run, 390 to 650 MiB: its scores are just below the 32 MiB from
which glibc maps memory, so freed ones stay in the heap. With `MALLOC_MMAP_THRESHOLD_=1048576` it is always 292 MiB.
Served for long, a model compiles kernels for more numbers of rows: see `benchmarks/memory_growth.py`.""".splitlines()
END = 256
SHAPE = {
    "vocab_size": 260, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048, "tie_word_embeddings": False,
    "eos_token_id": END, "bos_token_id": END, "pad_token_id": END,
}  # fmt: skip
LATENT = {
    "num_key_value_heads": 4, "head_dim": 8, "kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8, "v_head_dim": 10, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 32, "n_shared_experts": 1,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0}
FAMILIES = {
    "llama": {"model_type": "llama"},
    "gpt2": {"model_type": "gpt2", "n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 2048},
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True},
    "mistral-sliding": {"model_type": "mistral", "sliding_window": 24},
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4},
    "deepseek-v3": {"model_type": "deepseek_v3", **LATENT},
    "llama-dynamic": {"model_type": "llama", "rope_parameters": DYNAMIC},
    "mamba": {"model_type": "mamba", "state_size": 8},
    "bloom": {"model_type": "bloom", "n_layer": 3, "n_head": 4},
}
CASES = [(DEMO, "bfloat16"), (DEMO, "float32")]
CASES += [(family, dtype) for family in FAMILIES for dtype in ("float32", "bfloat16")]


@dataclass(frozen=True)
class Measured:
    """One model: what was estimated, and what its worker took, in bytes."""

    name: str
    report: FitReport
    facts: EngineFacts
    loaded_bytes: int
    peak_bytes: int
    most_kv_usage_ratio: float

    @property
    def loaded_ratio(self) -> float:
        """Estimated over measured, after the load."""
        return self.report.loaded_bytes / self.loaded_bytes

    @property
    def needed_ratio(self) -> float:
        """Promised over measured, at the peak."""
        return self.report.needed_bytes / self.peak_bytes


def private_bytes(pid: int) -> int:
    """What a process has written and shares with nobody."""
    return private_dirty_bytes(Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii"))


def write_tiny(family: str, folder: Path) -> Path:
    """A model of this family with random weights, and a tokenizer of one token a byte."""
    config = {**SHAPE, **FAMILIES[family]}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config.pop("model_type"), **config))
    model.save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>").save_pretrained(folder)  # noqa: S106 - a token of text
    return folder


def estimate(folder: Path, dtype: str, room: memory_fit.Room = ROOM) -> FitReport:
    """What the fit check says of it, with all the room in the world unless told otherwise."""
    name = folder.name
    tensors = read_header(folder / "model.safetensors", name)
    profile = model_profile.profile(ModelRef(name), read_json(folder / "config.json", name), tensors)
    device = HostMemoryProbe().device()
    return memory_fit.fit(profile, LoadOptions(dtype=dtype), device, room, max_batch=MAX_BATCH)


async def measure(launcher: ForkServerLauncher, folder: Path, dtype: str, room: memory_fit.Room = ROOM) -> Measured:
    """Load it as estimated, fill its cache, and see what the worker took."""
    report = estimate(folder, dtype, room)
    spec = EngineSpec(
        model=folder.name,
        path=str(folder),
        device=report.device,
        device_count=1,
        dtype=dtype,
        kv_cache_tokens=report.kv_cache_tokens,
        max_batch=MAX_BATCH,
        max_queue=MAX_BATCH,
    )
    before = set(workers())
    engine = await launcher.launch(spec, lambda *_: None)
    (pid,) = set(workers()) - before
    try:
        loaded_bytes = private_bytes(pid)
        peak_bytes, usage = await drive(engine, pid)
    finally:
        await engine.aclose()
    return Measured(folder.name, report, engine.facts, loaded_bytes, max(peak_bytes, loaded_bytes), usage)


async def drive(engine: TextEngine, pid: int) -> tuple[int, float]:
    """Full batches that fill the cache, twice; then the longest prompts.

    Returns the most bytes that the worker took, and the most of the cache that was reserved.
    """
    batched = engine.facts.batching == "continuous"
    context = engine.facts.context_window_tokens
    each = min(engine.facts.kv_cache_tokens // MAX_BATCH if batched else context, context) - 8
    longest = min(engine.facts.kv_cache_tokens or context, context) - 2 * 8
    new_tokens = NEW_TOKENS if batched else 8
    count = MAX_BATCH if batched else 1
    source = random.Random(0)  # noqa: S311 - prompts
    peak_bytes, usage = 0, 0.0
    for lengths, top_p in (([each] * count, 1.0), ([each - n for n in range(count)], 0.9), ([longest] * 2, 0.9)):
        budget = min(new_tokens, longest // 2) if len(lengths) == count else 8
        tasks = [asyncio.create_task(generate(engine, length - budget, budget, top_p, source)) for length in lengths]
        while not all(task.done() for task in tasks):
            peak_bytes, usage = max(peak_bytes, private_bytes(pid)), max(usage, engine.load.kv_cache_usage_ratio)
            await asyncio.sleep(INTERVAL_S)
        await asyncio.gather(*tasks)
    return peak_bytes, usage


async def generate(engine: TextEngine, tokens: int, new_tokens: int, top_p: float, source: random.Random) -> None:
    """One sampled request, its prompt of so many tokens."""
    if engine.facts.model == Path(DEMO).name:
        text = " ".join(source.choice(WORDS) for _ in range(tokens - 2))
    else:
        text = "".join(source.choice("abcdefghij klm") for _ in range(tokens - 2))
    sampling = SamplingParams(max_new_tokens=new_tokens, top_p=top_p, ignore_eos=True)
    now_s = time.monotonic()
    async for _ in engine.generate(GenerationRequest(Prompt(text=text), sampling, now_s, now_s + 600)):
        pass


def workers() -> list[int]:
    """The processes that the fork server has forked."""
    return [worker.pid for server in psutil.Process().children() for worker in server.children()]


def table(rows: list[Measured]) -> list[str]:
    """Lines of Markdown."""

    def mib(count: int) -> str:
        return f"{count / MIB:.1f}"

    parts = "| weights | overhead | **loaded** | measured | ratio | KV cache | working | **needed** "
    return [
        "| model | dtype | runs " + parts + "| measured peak | ratio |",
        "|---|---|---|" + "---:|" * 10,
        *(
            f"| {row.name} | {row.report.dtype} | {row.facts.batching} | {mib(row.report.weights_bytes)} "
            f"| {mib(row.report.overhead_bytes)} | {mib(row.report.loaded_bytes)} | {mib(row.loaded_bytes)} "
            f"| {row.loaded_ratio:.2f} | {mib(row.report.kv_cache_bytes)} | {mib(row.report.working_bytes)} "
            f"| {mib(row.report.needed_bytes)} | {mib(row.peak_bytes)} | {row.needed_ratio:.2f} |"
            for row in rows
        ),
    ]


async def run(only: list[str]) -> list[Measured]:
    launcher = ForkServerLauncher(log_level="error")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for name, dtype in CASES:
                if only and name not in only:
                    continue
                folder = MODELS / name if name == DEMO else Path(scratch) / name
                if not folder.exists():
                    write_tiny(name, folder)
                row = await measure(launcher, folder, dtype, NO_ROOM if name == DEMO else ROOM)
                print(*table([row])[2:], row.facts.memory_bytes // MIB, row.most_kv_usage_ratio, flush=True)
                rows.append(row)
        finally:
            await launcher.aclose()
    return rows


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="also write the report into this Markdown file")
    parser.add_argument("--only", nargs="*", default=[], help="these models alone")
    arguments = parser.parse_args()
    lines = table(asyncio.run(run(arguments.only)))
    print("\n".join(lines))
    if arguments.write:
        text = [
            "# The fit check against real workers\n\nMade by:\n",
            f"    python benchmarks/memory_fit.py --write {arguments.write}",
            "",
            "Memory is what the worker has written and shares with nobody (`Private_Dirty`), in MiB. A ratio is",
            "estimated over measured. *Measured* is after the load, *measured peak* while batches of",
            f"{MAX_BATCH} fill the KV cache and the longest prompts run. The tiny models have random weights, 3 layers",
            "and 64 channels: they show what a worker takes whatever its model. The demo model has the shortest cache,",
            "of 2048 tokens, so that filling it takes seconds.",
            f"{psutil.cpu_count()} CPU cores, Python {platform.python_version()}, torch {torch.__version__}.",
            "",
            *lines,
            "",
            *NOTES,
        ]
        arguments.write.write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

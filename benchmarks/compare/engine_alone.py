"""The engine without a server around it: seconds that so many requests at once take, as JSON.

python -m benchmarks.compare.engine_alone CONCURRENCY,… NEW_TOKENS KV_CACHE_TOKENS SEED
"""

from __future__ import annotations

import gc
import json
import sys
import time
import warnings

from transformers import AutoTokenizer

from inferapi.domain.generation import SamplingParams
from inferapi.domain.model import DeviceKind, EngineSpec
from inferapi.engine.model_loader import load_model
from inferapi.engine.request import Request

from .dialects import MODEL, MODEL_FOLDER
from .environments import ROOT
from .measure import PROMPT_TOKENS
from .peers import MOST_AT_ONCE
from .prompts import Prompts


def main() -> None:
    """Each number of requests twice, the first time to warm up."""
    widths, new_tokens, kv_cache_tokens, seed = sys.argv[1:]
    warnings.filterwarnings("ignore", message="index_reduce")
    folder = str(ROOT / MODEL_FOLDER)
    spec = EngineSpec(
        model=MODEL,
        path=folder,
        device=DeviceKind.CPU,
        device_count=0,
        dtype="bfloat16",
        kv_cache_tokens=int(kv_cache_tokens),
        max_batch=MOST_AT_ONCE,
        max_queue=2 * MOST_AT_ONCE,
    )
    loop = load_model(spec).loop
    tokenizer = AutoTokenizer.from_pretrained(folder)
    gc.collect()
    gc.freeze()  # as a worker does
    sampling = SamplingParams(max_new_tokens=int(new_tokens), temperature=0, repetition_penalty=1.0, ignore_eos=True)
    took_s = {}
    request_id = 0
    for is_warm in (False, True):
        for rows in map(int, widths.split(",")):
            prompts = Prompts(f"{seed} {is_warm} {rows}").take(PROMPT_TOKENS, rows)
            token_ids = [tokenizer(prompt).input_ids for prompt in prompts]
            started_s = time.perf_counter()
            for tokens in token_ids:
                request_id += 1
                loop.submit(Request(request_id, tokens, len(tokens), sampling, time.monotonic()))
            while not loop.is_idle:
                loop.step()
            took_s[str(rows)] = time.perf_counter() - started_s
    print(json.dumps(took_s))


if __name__ == "__main__":
    main()

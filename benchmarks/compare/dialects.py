"""How each server is asked for a stream of exactly so many greedy tokens, and how its events are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
MODEL_FOLDER = f"models/{MODEL}"


@dataclass(frozen=True)
class Piece:
    """What an event says: a piece of the answer, and the counts of tokens where the server tells them."""

    text: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True)
class Dialect:
    """A path, the body of a request, and the meaning of an event."""

    path: str
    body: Callable[[str, int], Mapping[str, object]]
    read: Callable[[dict[str, Any]], Piece]
    headers: Mapping[str, str] = field(default_factory=dict)


def _infer_body(prompt: str, new_tokens: int) -> Mapping[str, object]:
    return {
        "text": prompt,
        "max_new_tokens": new_tokens,
        "temperature": 0,
        "repetition_penalty": 1.0,
        "ignore_eos": True,
        "stream": True,
        "details": True,
    }


def _read_infer(event: dict[str, Any]) -> Piece:
    if "delta" in event:
        return Piece(event["delta"])
    return _usage("", event["details"]["usage"])


def _usage(text: str, usage: Mapping[str, int] | None) -> Piece:
    if not usage:
        return Piece(text)
    return Piece(text, usage["prompt_tokens"], usage["completion_tokens"])


def _read_completions(event: dict[str, Any]) -> Piece:
    choices = event.get("choices") or [{}]
    return _usage(choices[0].get("text") or "", event.get("usage"))


def _transformers_body(prompt: str, new_tokens: int) -> Mapping[str, object]:
    # Its own schema has no field that keeps an end token from ending an answer; a generation config has. No token has
    # the id -1.
    config = {"max_new_tokens": new_tokens, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0}
    return {"model": MODEL_FOLDER, "prompt": prompt, "stream": True, "generation_config": json.dumps(config)}


def _vllm_body(prompt: str, new_tokens: int) -> Mapping[str, object]:
    return {
        "model": MODEL_FOLDER,
        "prompt": prompt,
        "max_tokens": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _llama_server_body(prompt: str, new_tokens: int) -> Mapping[str, object]:
    return {
        "prompt": prompt,
        "n_predict": new_tokens,
        "ignore_eos": True,
        # Greedy with the least work: the default chain of samplers sorts and filters what the first one decides.
        "samplers": ["top_k"],
        "top_k": 1,
        "cache_prompt": False,
        "stream": True,
    }


def _read_llama_server(event: dict[str, Any]) -> Piece:
    if not event.get("stop"):
        return Piece(event.get("content", ""))
    return Piece(event.get("content", ""), event["tokens_evaluated"], event["tokens_predicted"])


def _llama_cpp_python_body(prompt: str, new_tokens: int) -> Mapping[str, object]:
    return {
        "prompt": prompt,
        "max_tokens": new_tokens,
        "temperature": 0,
        "top_k": 1,
        "repeat_penalty": 1.0,
        "logit_bias": {"2": -100.0},  # <|im_end|>, the one end token of the file
        "stream": True,
    }


INFER = Dialect("/infer", _infer_body, _read_infer)
TRANSFORMERS = Dialect("/v1/completions", _transformers_body, _read_completions)
VLLM = Dialect("/v1/completions", _vllm_body, _read_completions)
LLAMA_SERVER = Dialect("/completion", _llama_server_body, _read_llama_server)
LLAMA_CPP_PYTHON = Dialect("/v1/completions", _llama_cpp_python_body, _read_completions)

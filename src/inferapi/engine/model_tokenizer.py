"""A model's tokenizer: read from its folder, and as detokenizing, ending and constraining need it."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llguidance.hf import from_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ROOM_BYTES, _FILE_FACTOR = 32 * 1024**2, 32  # twice what SmolLM2's takes, whose file has 2 MB


def read_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder; no code of the folder's runs. Raises whatever transformers makes of bad files.

    Raises:
        OSError: there is too little memory for it.
    """
    _require_room(folder)
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True
    )
    return tokenizer


def grammar_tokenizer(folder: str, tokenizer: PreTrainedTokenizerBase, eos_token_ids: Collection[int]) -> LLTokenizer:
    """The tokenizer as constraints need it; it takes as much memory again, in Rust.

    Raises:
        TypeError: it is none of the fast ones.
        ValueError: it has no bytes for its tokens.
    """
    _require_room(folder)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TypeError(type(tokenizer).__name__)
    ends = sorted(token for token in eos_token_ids if token < len(tokenizer))
    return from_tokenizer(tokenizer, eos_token=ends or None)


def eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Collection[int]:
    """Every token that the model or its tokenizer calls an end."""
    ids: set[Any] = set()
    for source in (model.generation_config, model.config, tokenizer):
        value = getattr(source, "eos_token_id", None)
        ids |= set(value if isinstance(value, list) else [value])
    return {token for token in ids if isinstance(token, int)}


def decoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[int]], str]:
    """Token ids to text, without special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:  # the same text without the Python around it, which costs more than the decoding
        return lambda ids: backend.decode(list(ids), skip_special_tokens=True)
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def _require_room(folder: str) -> None:
    """Map what a tokenizer may take, and let go of it: ``OSError`` if that fails, where Rust would end the process."""
    file = Path(folder, "tokenizer.json")
    file_bytes = file.stat().st_size if file.is_file() else 0
    mmap.mmap(-1, _ROOM_BYTES + _FILE_FACTOR * file_bytes).close()

"""What the engine's unit tests share: requests, and a byte-level tokenizer built in code."""

from collections.abc import Callable, Sequence

import pytest
from llguidance import LLTokenizer
from tokenizers import Tokenizer, decoders, models

from inferapi.domain.generation import SamplingParams
from inferapi.engine.constraints import Constrainer
from inferapi.engine.request import Request
from native_kernels import compiled, kernels  # noqa: F401 - fixtures of this folder
from tiny import byte_level_tokenizer, one_thread  # noqa: F401 - a fixture of this folder

NewRequest = Callable[..., Request]


@pytest.fixture(scope="session")
def new_request() -> NewRequest:
    """Makes requests: greedy and without penalty unless told otherwise."""

    def make(request_id: int = 0, prompt: Sequence[int] = (1, 2, 3), **sampling: object) -> Request:
        params = SamplingParams(**{"temperature": 0.0, "repetition_penalty": 1.0, **sampling})
        return Request(request_id, list(prompt), len(prompt), params, arrived_s=0.0)

    return make


@pytest.fixture
def byte_tokenizer() -> Tokenizer:
    """One token a byte: ids 0 to 255 in the order of the byte-level alphabet."""
    return byte_level_tokenizer()


@pytest.fixture
def constrainer(byte_tokenizer: Tokenizer) -> Constrainer:
    """Of the byte-level tokenizer and an end token, 256."""
    byte_tokenizer.add_special_tokens(["<|end|>"])
    return Constrainer(lambda: LLTokenizer(byte_tokenizer.to_str(), eos_token=[256]))


@pytest.fixture(scope="session")
def llama_tokenizer() -> Tokenizer:
    """A sentencepiece-like vocabulary: spaces before words, bytes for what has no token of its own."""
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += ["\u2581", "\u2581Hello", "\u2581world", "Hello", "world", "!", "a", "b", "\u2581a"]
    tokenizer = Tokenizer(
        models.BPE(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[], byte_fallback=True)
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


@pytest.fixture(scope="session")
def llama_ids(llama_tokenizer: Tokenizer) -> Callable[..., list[int]]:
    """The ids of known pieces, and of the bytes of all others."""

    def ids_of(piece: str) -> list[int]:
        known = llama_tokenizer.token_to_id(piece)
        if known is not None:
            return [known]
        return [llama_tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in piece.encode()]

    return lambda *pieces: [token for piece in pieces for token in ids_of(piece)]

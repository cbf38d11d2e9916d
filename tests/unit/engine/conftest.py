"""What the engine's unit tests share: requests, and a byte-level tokenizer built in code."""

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from inferapi.domain.generation import SamplingParams
from inferapi.engine.request import Request

NewRequest = Callable[..., Request]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, which wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


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

"""The bytes that a token stands for, which need not be whole characters."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_KEPT_TOKENS = 2**16
_WORD_START = "\u2581"  # sentencepiece's space
_BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """Token ids to bytes, for one model's tokenizer.

    Tokenizers write their pieces in one of two ways: in an alphabet with a letter for each byte, or as text with a
    mark for spaces and pieces such as ``<0xF0>`` for bytes. Which one, their decoder tells.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._num_tokens = len(tokenizer)
        self._added = {token_id: str(token.content) for token_id, token in tokenizer.added_tokens_decoder.items()}
        backend = getattr(tokenizer, "backend_tokenizer", None)
        decoder = getattr(backend, "decoder", None)
        is_slow = backend is None  # sentencepiece itself
        self._has_letters = decoder is not None and decoder.decode(["a\u0120a"]) == "a a"
        self._has_marks = is_slow or (decoder is not None and decoder.decode([f"a{_WORD_START}a"]) == "a a")
        self._has_byte_pieces = is_slow or (decoder is not None and decoder.decode(["a", "<0x62>", "a"]) == "aba")
        self._byte_of = _byte_alphabet()
        self._kept = lru_cache(_KEPT_TOKENS)(self._find)

    def of(self, token_id: int) -> bytes:
        """The bytes of a token; none of an id that the tokenizer does not know."""
        return self._kept(token_id)

    def _find(self, token_id: int) -> bytes:
        if token_id in self._added:
            return self._added[token_id].encode()
        found = self._tokenizer.convert_ids_to_tokens(token_id) if token_id < self._num_tokens else None
        if found is None:
            return b""
        piece = str(found)
        if self._has_letters and all(letter in self._byte_of for letter in piece):
            return bytes(self._byte_of[letter] for letter in piece)
        if self._has_byte_pieces and (byte := _BYTE_PIECE.fullmatch(piece)):
            return bytes.fromhex(byte[1])
        if self._has_marks:
            piece = piece.replace(_WORD_START, " ")
        return piece.encode()


def _byte_alphabet() -> dict[str, int]:
    """The byte of each letter, after GPT-2's ``bytes_to_unicode``: printable bytes stand for themselves."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(0x100 + nth): byte for nth, byte in enumerate(hidden)}

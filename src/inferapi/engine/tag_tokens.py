"""Tokens that are marks within an answer: of its calls, and of its reasoning. Who reads it needs them as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inferapi.engine.detokenizer import Decode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CALL_TAGS = frozenset({"<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"})


def tag_tokens(
    tokenizer: PreTrainedTokenizerBase, reasoning_tags: tuple[str, str] | None
) -> tuple[tuple[str, int], ...]:
    """The tags that are single tokens of this vocabulary, special or not, and their ids."""
    tags = _CALL_TAGS.union(reasoning_tags or ())
    added = ((token.content, token_id) for token_id, token in tokenizer.added_tokens_decoder.items())
    return tuple(sorted((content, token_id) for content, token_id in added if content in tags))


def with_tags(decode: Decode, tags: Sequence[tuple[str, int]]) -> Decode:
    """``decode``, which leaves special tokens out, with the text of these ones in their places."""
    texts = {token_id: tag for tag, token_id in tags}
    if not texts:
        return decode

    def decoded(ids: Sequence[int]) -> str:
        if texts.keys().isdisjoint(ids):
            return decode(ids)
        pieces, begin = [], 0
        for at, token_id in enumerate(ids):
            if token_id in texts:
                pieces += [decode(ids[begin:at]), texts[token_id]]
                begin = at + 1
        return "".join([*pieces, decode(ids[begin:])])

    return decoded

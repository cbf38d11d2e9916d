"""Answers of ``/v1/completions``: whole, and as chunks, with log-probabilities in OpenAI's older shape."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from inferapi.api.openai.answers import Answer, Head, usage_object
from inferapi.api.openai.events import ChunkEvents
from inferapi.application.answer_parts import Part
from inferapi.domain.generation import ChosenToken, TokenChance

_KIND = "text_completion"


class TokenTable:
    """The tokens of one choice as columns, as they come.

    Args:
        top: how many of the likeliest to tell beside each.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def columns(self, tokens: Sequence[ChosenToken]) -> dict[str, Any]:
        """Of the tokens that come next. Offsets count the characters of the choice's text."""
        return {
            "tokens": [_name(token.chance) for token in tokens],
            "token_logprobs": [token.chance.logprob for token in tokens],
            "top_logprobs": [self._likeliest(token) for token in tokens] if self._top else None,
            "text_offset": [self._offset(token.chance.data) for token in tokens],
        }

    def _likeliest(self, token: ChosenToken) -> dict[str, float]:
        """The likeliest ones, and the chosen one if it is not among them."""
        told: dict[str, float] = {}
        for chance in (*token.likeliest[: self._top], token.chance):
            told.setdefault(_name(chance), chance.logprob)
        return told

    def _offset(self, data: bytes) -> int:
        offset = self._characters
        self._characters += len(self._decoder.decode(data))
        return offset


class TextEvents(ChunkEvents):
    """The parts of an answer as chunks of ``text_completion``; ``top`` is none without log-probabilities."""

    def __init__(self, head: Head, *, includes_usage: bool, top: int | None) -> None:
        super().__init__(head, _KIND, includes_usage=includes_usage)
        self._top = top
        self._tables: dict[int, TokenTable] = {}

    def _of_part(self, part: Part) -> bytes:
        if not (part.text or part.tokens or part.finish_reason):
            return b""
        logprobs = None
        if self._top is not None and part.tokens:
            logprobs = self._tables.setdefault(part.index, TokenTable(self._top)).columns(part.tokens)
        choice = {"index": part.index, "text": part.text, "logprobs": logprobs, "finish_reason": part.finish_reason}
        return self._chunk([choice])


def text_reply(answer: Answer, head: Head, *, top: int | None) -> dict[str, Any]:
    """The whole answer as ``text_completion``."""
    choices = [
        {
            "index": choice.index,
            "text": choice.text,
            "logprobs": None if top is None else TokenTable(top).columns(choice.tokens),
            "finish_reason": choice.finish_reason,
        }
        for choice in answer.choices
    ]
    reply = head.object(_KIND, answer.model, choices) | {"usage": usage_object(answer.usage)}
    return reply | {"warnings": head.warnings} if head.warnings else reply


def _name(chance: TokenChance) -> str:
    """A token's text; its bytes where they are only a part of a character."""
    try:
        chance.data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in chance.data)
    return chance.text

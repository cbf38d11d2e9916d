"""Streams under ``/v1``: chunks until ``[DONE]``, errors in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from inferapi.api.openai.answers import Head, usage_object
from inferapi.api.openai.errors import openai_error
from inferapi.api.sse import DONE, event
from inferapi.application.answer_parts import Completed, Part, Started
from inferapi.application.answer_room import AnswerItem
from inferapi.domain.errors import InferapiError


class ChunkEvents:
    """How an answer's items become chunks; what a part becomes is for its kinds to say.

    Nothing is told of ``Started``: an error that comes before the first part keeps its HTTP status.

    Args:
        head: what every chunk begins with.
        kind: the chunks' ``object``.
        includes_usage: a last chunk without choices tells the usage; all before it have none.
    """

    def __init__(self, head: Head, kind: str, *, includes_usage: bool) -> None:
        self._head = head
        self._kind = kind
        self._includes_usage = includes_usage
        self._warnings = head.warnings
        self._model = ""

    def of(self, item: AnswerItem) -> bytes:
        """See ``Events``."""
        if isinstance(item, Part):
            return self._of_part(item)
        if isinstance(item, Started):
            self._model = item.model
        elif isinstance(item, Completed) and self._includes_usage:
            return self._chunk([], usage_object(item.usage))
        return b""

    def failure(self, error: InferapiError) -> bytes:
        """See ``Events``."""
        return event({"error": openai_error(error)})

    def end(self) -> bytes:
        """See ``Events``."""
        return DONE

    def _of_part(self, part: Part) -> bytes:
        """The chunks of a part; none if it says nothing."""
        raise NotImplementedError

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        chunk = self._head.object(self._kind, self._model, choices)
        if self._includes_usage:
            chunk["usage"] = usage
        if self._warnings:
            chunk["warnings"], self._warnings = self._warnings, ()
        return event(chunk)

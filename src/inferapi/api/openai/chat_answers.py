"""Answers of ``/v1/chat/completions``: whole, and as chunks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from inferapi.api.openai.answers import Answer, Head, usage_object
from inferapi.api.openai.events import ChunkEvents
from inferapi.api.openai.logprobs import encoded, listed
from inferapi.application.answer_parts import Choice, Part
from inferapi.domain.generation import ChosenToken


class ChatEvents(ChunkEvents):
    """The parts of an answer as ``chat.completion.chunk``.

    The first chunk of each choice names the role, the last one has nothing but the ``finish_reason``.
    """

    def __init__(self, head: Head, *, includes_usage: bool, has_logprobs: bool) -> None:
        super().__init__(head, "chat.completion.chunk", includes_usage=includes_usage)
        self._has_logprobs = has_logprobs
        self._begun: set[int] = set()

    def _of_part(self, part: Part) -> bytes:
        data, delta = b"", _delta(part)
        if part.index not in self._begun:
            self._begun.add(part.index)
            data = self._choice(part.index, {"role": "assistant", "content": None if part.tool_call else ""})
        if delta or part.tokens:
            data += self._choice(part.index, delta, part.tokens)
        if part.finish_reason is not None:
            data += self._choice(part.index, {}, finish_reason=part.finish_reason)
        return data

    def _choice(
        self,
        index: int,
        delta: dict[str, Any],
        tokens: Sequence[ChosenToken] = (),
        finish_reason: str | None = None,
    ) -> bytes:
        logprobs = _logprobs([encoded(tokens)]) if self._has_logprobs and tokens else None
        return self._chunk([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}])


def chat_reply(answer: Answer, head: Head, *, has_logprobs: bool) -> dict[str, Any]:
    """The whole answer as ``chat.completion``; its log-probabilities were encoded as they came."""
    choices = [
        {
            "index": choice.index,
            "message": _message(choice),
            "logprobs": _logprobs(answer.logprobs.get(choice.index, ())) if has_logprobs else None,
            "finish_reason": choice.finish_reason,
        }
        for choice in answer.choices
    ]
    reply = head.object("chat.completion", answer.model, choices) | {"usage": usage_object(answer.usage)}
    return reply | {"warnings": head.warnings} if head.warnings else reply


def _message(choice: Choice) -> dict[str, Any]:
    content = None if choice.tool_calls and not choice.text else choice.text
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if choice.reasoning:
        message["reasoning_content"] = choice.reasoning
    if choice.tool_calls:
        message["tool_calls"] = [
            {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in choice.tool_calls
        ]
    return message


def _delta(part: Part) -> dict[str, Any]:
    call = part.tool_call
    if call is not None:
        function = {"arguments": call.arguments}
        if call.name is None:
            return {"tool_calls": [{"index": call.number, "function": function}]}
        named = {"name": call.name} | function
        return {"tool_calls": [{"index": call.number, "id": call.call_id, "type": "function", "function": named}]}
    if part.reasoning:
        return {"reasoning_content": part.reasoning}
    return {"content": part.text} if part.text else {}


def _logprobs(pieces: Iterable[bytes]) -> dict[str, Any]:
    """The log-probabilities of an answer's tokens, encoded piece by piece."""
    return {"content": listed(pieces), "refusal": None}

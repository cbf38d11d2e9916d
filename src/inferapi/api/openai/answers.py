"""What the answers of all routes under ``/v1`` have in common: their heads, usage, and how they are sent."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from inferapi.api.disconnect import until_disconnect
from inferapi.api.event_pump import Events
from inferapi.api.json_reply import json_reply
from inferapi.api.sse import EventStream
from inferapi.application.answer_parts import Choice, Completed, Part, Started, collected
from inferapi.application.answer_room import AnswerItem
from inferapi.domain.generation import ChosenToken, Usage


@dataclass(frozen=True, slots=True)
class Head:
    """What every object of an answer begins with.

    Attributes:
        warnings: parameters that were ignored, told once.
    """

    answer_id: str
    created_s: int
    warnings: tuple[str, ...] = ()

    @classmethod
    def new(cls, kind: str, warnings: tuple[str, ...] = ()) -> Head:
        """Of an answer that begins now; ``kind`` is what its id starts with."""
        return cls(f"{kind}-{secrets.token_hex(16)}", int(time.time()), warnings)

    def object(self, kind: str, model: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """An object with these choices."""
        return {"id": self.answer_id, "object": kind, "created": self.created_s, "model": model, "choices": choices}


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that has come to its end.

    Attributes:
        logprobs: by the index of the choice, where they were encoded as they came; the choices have no tokens then.
    """

    model: str
    choices: tuple[Choice, ...]
    usage: Usage
    logprobs: Mapping[int, Sequence[bytes]] = field(default_factory=dict)


async def answered(
    request: Request,
    items: AsyncGenerator[AnswerItem],
    events: Events[AnswerItem],
    reply: Callable[[Answer], dict[str, Any]],
    *,
    stream: bool,
    encode_tokens: Callable[[Sequence[ChosenToken]], bytes] | None = None,
) -> Response:
    """The items as events, or all of them as one ``reply``.

    ``encode_tokens`` is for answers whose log-probabilities would be too many to encode at the end.

    Raises:
        InferapiError: the answer failed; in a stream, only before its first event.
        ClientDisconnect: the client left.
    """
    if stream:
        return await EventStream.start(request, items, events)
    return json_reply(reply(await until_disconnect(request, _whole(items, encode_tokens))))


def usage_object(usage: Usage) -> dict[str, Any]:
    """The tokens, as OpenAI counts them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


async def _whole(
    items: AsyncGenerator[AnswerItem], encode_tokens: Callable[[Sequence[ChosenToken]], bytes] | None
) -> Answer:
    model, usage = "", Usage(0, 0)
    logprobs: dict[int, list[bytes]] = {}
    parts: list[Part] = []
    async with aclosing(items):
        async for item in items:
            if isinstance(item, Part):
                if encode_tokens is not None and item.tokens:
                    logprobs.setdefault(item.index, []).append(encode_tokens(item.tokens))
                    item = replace(item, tokens=())  # noqa: PLW2901 - thousands of them would be kept
                parts.append(item)
            elif isinstance(item, Started):
                model = item.model
            elif isinstance(item, Completed):
                usage = item.usage
    return Answer(model, collected(parts), usage, logprobs)

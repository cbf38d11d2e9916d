"""Responses as stored: the question and the answer of a session's only turn, each a versioned JSON document."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn, cast

from inferapi.application.response_items import (
    CallItem,
    CallOutputItem,
    Item,
    ItemStatus,
    MessageItem,
    ReasoningItem,
    Speaker,
)
from inferapi.domain.chat import Turn
from inferapi.domain.errors import SessionUnreadable
from inferapi.domain.generation import ChosenToken, TokenChance, Usage

VERSION = 1
"""Of the documents. A reader refuses those of a later version: it would lose what it does not know."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, and all that there is to tell about it.

    Attributes:
        created_at_s, completed_at_s: wall-clock times, seconds since the epoch.
        asked: items that it answers, oldest first: those of the responses before it, then those that were sent.
        finish_reason: ``stop``, ``length`` or ``tool_calls``.
        told: what clients are told besides, as the API words it.
    """

    response_id: str
    created_at_s: float
    completed_at_s: float
    model: str
    asked: tuple[Item, ...]
    output: tuple[Item, ...]
    finish_reason: str
    usage: Usage
    told: Mapping[str, object]


def encode_asked(items: Sequence[Item]) -> str:
    """The question: what a turn stores as its ``user``."""
    return _encoded({"v": VERSION, "items": [_plain(item) for item in items]})


def encode_response(response: Response, asked: str) -> Turn:
    """The turn that holds a response, whose question is ``asked`` already."""
    answer = {
        "v": VERSION,
        "created_at": response.created_at_s,
        "output": [_plain(item) for item in response.output],
        "cached_tokens": response.usage.cached_tokens,
        "reasoning_tokens": response.usage.reasoning_tokens,
        "told": response.told,
    }
    return Turn(
        turn_id=response.response_id,
        user=asked,
        assistant=_encoded(answer),
        model=response.model,
        created_at_s=response.completed_at_s,
        prompt_tokens=response.usage.prompt_tokens,
        completion_tokens=response.usage.completion_tokens,
        finish_reason=response.finish_reason,
    )


def decode_response(turn: Turn) -> Response:
    """The response that a turn holds.

    Raises:
        SessionUnreadable: it is damaged, or of a later version.
    """
    question, answer = _decoded(turn.user), _decoded(turn.assistant)
    match question, answer:
        case (
            {"items": list(asked)},
            {
                "created_at": int() | float() as created_at_s,
                "output": list(output),
                "cached_tokens": int(cached_tokens),
                "reasoning_tokens": int(reasoning_tokens),
                "told": dict(told),
            },
        ):
            return Response(
                response_id=turn.turn_id,
                created_at_s=created_at_s,
                completed_at_s=turn.created_at_s,
                model=turn.model,
                asked=tuple(map(_item, asked)),
                output=tuple(map(_item, output)),
                finish_reason=turn.finish_reason,
                usage=Usage(
                    turn.prompt_tokens,
                    turn.completion_tokens,
                    cached_tokens=cached_tokens,
                    reasoning_tokens=reasoning_tokens,
                ),
                told=told,
            )
    return _refuse()


def _encoded(document: Mapping[str, object]) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def _decoded(text: str) -> object:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SessionUnreadable(problem="a response in it is not what this server writes") from error
    version = document.get("v") if isinstance(document, dict) else None
    if version != VERSION:
        raise SessionUnreadable(problem=f"a response in it is not of version {VERSION}, which this server reads")
    return document


def _plain(item: Item) -> dict[str, object]:
    if isinstance(item, MessageItem):
        plain: dict[str, object] = {
            "type": "message",
            "id": item.item_id,
            "by": item.speaker,
            "texts": item.texts,
            "is": item.status,
        }
        if item.tokens:
            plain["tokens"] = [_plain_token(token) for token in item.tokens]
        return plain
    if isinstance(item, CallItem):
        call = {"id": item.item_id, "call": item.call_id, "name": item.name, "arguments": item.arguments}
        return {"type": "call", **call, "is": item.status}
    if isinstance(item, CallOutputItem):
        return {"type": "call_output", "id": item.item_id, "call": item.call_id, "text": item.text}
    texts = {"texts": item.texts, "summaries": item.summaries}
    return {"type": "reasoning", "id": item.item_id, **texts, "is": item.status}


def _item(plain: object) -> Item:
    match plain:
        case {
            "type": "message",
            "id": str(item_id),
            "by": "system" | "developer" | "user" | "assistant" as speaker,
            "texts": list(texts),
            "is": status,
            **rest,
        }:
            tokens = _list(rest.get("tokens", []))
            return MessageItem(
                item_id, cast("Speaker", speaker), _texts(texts), _status(status), tuple(map(_token, tokens))
            )
        case {
            "type": "call",
            "id": str(item_id),
            "call": str(call_id),
            "name": str(name),
            "arguments": str(arguments),
            "is": status,
        }:
            return CallItem(item_id, call_id, name, arguments, _status(status))
        case {"type": "call_output", "id": str(item_id), "call": str(call_id), "text": str(text)}:
            return CallOutputItem(item_id, call_id, text)
        case {
            "type": "reasoning",
            "id": str(item_id),
            "texts": list(texts),
            "summaries": list(summaries),
            "is": status,
        }:
            return ReasoningItem(item_id, _texts(texts), _texts(summaries), _status(status))
    return _refuse()


def _plain_token(token: ChosenToken) -> list[object]:
    return [_plain_chance(token.chance), [_plain_chance(chance) for chance in token.likeliest]]


def _token(plain: object) -> ChosenToken:
    match plain:
        case [chance, list(likeliest)]:
            return ChosenToken(_chance(chance), tuple(map(_chance, likeliest)))
    return _refuse()


def _plain_chance(chance: TokenChance) -> list[object]:
    return [chance.token_id, chance.text, chance.data.hex(), chance.logprob]


def _chance(plain: object) -> TokenChance:
    match plain:
        case [int(token_id), str(text), str(data), int() | float() as logprob]:
            try:
                return TokenChance(token_id, text, bytes.fromhex(data), float(logprob))
            except ValueError as error:
                raise SessionUnreadable(problem="a token in it is not what this server writes") from error
    return _refuse()


def _list(plain: object) -> list[object]:
    return plain if isinstance(plain, list) else _refuse()


def _texts(plain: list[object]) -> tuple[str, ...]:
    return tuple(text if isinstance(text, str) else _refuse() for text in plain)


def _status(plain: object) -> ItemStatus:
    return plain if plain in ("in_progress", "completed", "incomplete") else _refuse()


def _refuse() -> NoReturn:
    raise SessionUnreadable(problem="a response in it is not what this server writes")

"""What tests of responses share: questions, and the events of a stream."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any

from inferapi.application.response_items import MessageItem, new_item_id
from inferapi.application.response_records import Response
from inferapi.application.responses import Question, Responses
from inferapi.domain.generation import SamplingParams

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=100)


def said(text: str, speaker: str = "user") -> MessageItem:
    """A message that was sent."""
    return MessageItem(new_item_id(MessageItem), speaker, (text,))


def question(text: str = "Hi", **changes) -> Question:
    """A question in one message."""
    return Question(**{"owner": "", "items": (said(text),), "sampling": GREEDY, **changes})


async def answered(responses: Responses, asked: Question) -> Response:
    """The response, which comes last."""
    async with aclosing(responses.respond(asked)) as items:
        last = [item async for item in items][-1]
    assert isinstance(last, Response)
    return last


def typed_events(text: str) -> list[dict[str, Any]]:
    """The events of a stream, each of which names its type twice."""
    events = []
    for frame in text.removesuffix("\n\n").split("\n\n"):
        if frame.startswith(":"):
            continue
        name, data = frame.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events

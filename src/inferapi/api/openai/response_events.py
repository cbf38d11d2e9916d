"""The typed events of a response that is streamed, numbered in their order."""

from __future__ import annotations

from typing import Any

import msgspec

from inferapi.api.openai.errors import openai_error
from inferapi.api.openai.response_objects import (
    begun_object,
    failed_object,
    item_object,
    logprobs,
    part_object,
    response_object,
)
from inferapi.application.response_items import CallItem, MessageItem, ReasoningItem
from inferapi.application.response_output import ItemAdded, ItemChange, ItemDone, ItemGrew
from inferapi.application.response_records import Response
from inferapi.application.responses import Begun
from inferapi.domain.errors import InferapiError

_encoder = msgspec.json.Encoder()


class ResponseEvents:
    """The events of one response.

    The last one says how it ended: ``response.completed``, ``.incomplete`` or ``.failed``; there is no ``[DONE]``.
    """

    def __init__(self) -> None:
        self._begun: Begun | None = None
        self._done: list[dict[str, Any]] = []
        self._count = 0

    def of(self, item: Begun | ItemChange | Response) -> bytes:
        """See ``Events``."""
        if isinstance(item, Begun):
            self._begun = item
            response = begun_object(item)
            created = self._event("response.created", response=response)
            return created + self._event("response.in_progress", response=response)
        if isinstance(item, ItemAdded):
            return self._added(item)
        if isinstance(item, ItemGrew):
            return self._grew(item)
        if isinstance(item, ItemDone):
            return self._item_done(item)
        response = response_object(item, self._done)
        return self._event(f"response.{response['status']}", response=response)

    def failure(self, error: InferapiError) -> bytes:
        """See ``Events``. Of a response that has not begun, in the two shapes by which clients know an error."""
        if self._begun is not None:
            return self._event("response.failed", response=failed_object(self._begun, self._done, error))
        told = openai_error(error)
        return self._event("error", code=told["code"], message=told["message"], param=told["param"], error=told)

    def end(self) -> bytes:
        """See ``Events``."""
        return b""

    def _added(self, added: ItemAdded) -> bytes:
        item = added.item
        data = self._event("response.output_item.added", output_index=added.index, item=item_object(item))
        if isinstance(item, MessageItem | ReasoningItem):
            part = part_object(item, "")
            data += self._of_part("response.content_part.added", added.index, item.item_id, part=part)
        return data

    def _grew(self, grew: ItemGrew) -> bytes:
        index, item_id = grew.index, grew.item.item_id
        if isinstance(grew.item, MessageItem):
            told = {"delta": grew.delta, "logprobs": logprobs(grew.tokens)}
            return self._of_part("response.output_text.delta", index, item_id, **told)
        if isinstance(grew.item, ReasoningItem):
            return self._of_part("response.reasoning_text.delta", index, item_id, delta=grew.delta)
        kind = "response.function_call_arguments.delta"
        return self._event(kind, item_id=item_id, output_index=index, delta=grew.delta)

    def _item_done(self, done: ItemDone) -> bytes:
        index, item, item_id = done.index, done.item, done.item.item_id
        data, whole = b"", item_object(item)  # with its log-probabilities, which are encoded once for all events
        if isinstance(item, MessageItem | ReasoningItem):
            (part,) = whole["content"]
            if isinstance(item, MessageItem):
                told = {"text": part["text"], "logprobs": part["logprobs"]}
                data = self._of_part("response.output_text.done", index, item_id, **told)
            else:
                data = self._of_part("response.reasoning_text.done", index, item_id, text=part["text"])
            data += self._of_part("response.content_part.done", index, item_id, part=part)
        elif isinstance(item, CallItem):
            kind, called = "response.function_call_arguments.done", {"name": item.name, "arguments": item.arguments}
            data = self._event(kind, item_id=item_id, output_index=index, **called)
        self._done.append(whole)
        return data + self._event("response.output_item.done", output_index=index, item=self._done[-1])

    def _of_part(self, kind: str, index: int, item_id: str, **data: object) -> bytes:
        """An event about the only part of an item's content."""
        return self._event(kind, item_id=item_id, output_index=index, content_index=0, **data)

    def _event(self, kind: str, **data: object) -> bytes:
        told = {"type": kind, "sequence_number": self._count, **data}
        self._count += 1
        return b"event: " + kind.encode() + b"\ndata: " + _encoder.encode(told) + b"\n\n"

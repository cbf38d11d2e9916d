"""What responses are made of: items that were sent or answered, and the messages that a model reads them as."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from inferapi.domain.chat import Message, ToolCall
from inferapi.domain.errors import InvalidRequest
from inferapi.domain.generation import ChosenToken

Speaker = Literal["system", "developer", "user", "assistant"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


@dataclass(frozen=True, slots=True)
class MessageItem:
    """Something that was said, in one part or several.

    Attributes:
        tokens: of an answer whose log-probabilities were asked for.
    """

    item_id: str
    speaker: Speaker
    texts: tuple[str, ...]
    status: ItemStatus = "completed"
    tokens: tuple[ChosenToken, ...] = ()


@dataclass(frozen=True, slots=True)
class CallItem:
    """A call of a function that the model asked for. ``arguments`` is JSON, as the model wrote it."""

    item_id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus = "completed"


@dataclass(frozen=True, slots=True)
class CallOutputItem:
    """What a call came to."""

    item_id: str
    call_id: str
    text: str


@dataclass(frozen=True, slots=True)
class ReasoningItem:
    """What the model thought before it answered. Models are not shown it again, as their templates have it."""

    item_id: str
    texts: tuple[str, ...]
    summaries: tuple[str, ...] = ()
    status: ItemStatus = "completed"


Item = MessageItem | CallItem | CallOutputItem | ReasoningItem

_PREFIXES: dict[type[Item], str] = {MessageItem: "msg", CallItem: "fc", CallOutputItem: "fco", ReasoningItem: "rs"}


def new_item_id(kind: type[Item]) -> str:
    """An id that no other item has."""
    return f"{_PREFIXES[kind]}_{secrets.token_hex(24)}"


def remembered(items: Iterable[Item]) -> tuple[Item, ...]:
    """The items as later responses carry them along: without log-probabilities, which are many times the text."""
    return tuple(replace(item, tokens=()) if isinstance(item, MessageItem) else item for item in items)


def messages_of(instructions: str | None, items: Sequence[Item]) -> tuple[Message, ...]:
    """What the model reads: the instructions as a system message, then the items.

    Reasoning, what was said and the calls that follow are one message of the assistant, as chat templates expect.

    Raises:
        InvalidRequest: the output of a call that nobody made.
    """
    messages = [Message("system", instructions)] if instructions is not None else []
    speaking: _Speaking | None = None
    calls: set[str] = set()
    for item in items:
        if isinstance(item, ReasoningItem):
            speaking = speaking or _Speaking()
            continue
        if isinstance(item, CallItem):
            calls.add(item.call_id)
            speaking = speaking or _Speaking()
            speaking.calls.append(ToolCall(item.call_id, item.name, item.arguments))
            continue
        if isinstance(item, MessageItem) and item.speaker == "assistant":
            if speaking is None or not speaking.is_silent:
                messages += speaking.messages() if speaking else []
                speaking = _Speaking()
            speaking.text = "".join(item.texts)
            continue
        messages += speaking.messages() if speaking else []
        speaking = None
        messages.append(_heard(item, calls))
    return tuple(messages + (speaking.messages() if speaking else []))


@dataclass(slots=True)
class _Speaking:
    """A message of the assistant that further items may belong to. ``text`` is none before anything was said."""

    text: str | None = None
    calls: list[ToolCall] = field(default_factory=list)

    @property
    def is_silent(self) -> bool:
        return self.text is None and not self.calls

    def messages(self) -> list[Message]:
        return [Message("assistant", self.text or "", tool_calls=tuple(self.calls))]


def _heard(item: MessageItem | CallOutputItem, calls: set[str]) -> Message:
    """What others than the assistant said."""
    if isinstance(item, CallOutputItem):
        if item.call_id not in calls:
            raise InvalidRequest(problem="input: a function_call_output has the call_id of no function_call before it")
        return Message("tool", item.text, tool_call_id=item.call_id)
    return Message("user" if item.speaker == "user" else "system", "".join(item.texts))

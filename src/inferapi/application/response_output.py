"""The parts of an answer become a response's output items, one after another."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from inferapi.application.answer_parts import Part, ToolCallPart
from inferapi.application.response_items import CallItem, Item, ItemStatus, MessageItem, ReasoningItem, new_item_id
from inferapi.domain.generation import ChosenToken, FinishReason


@dataclass(frozen=True, slots=True)
class ItemAdded:
    """An item begins: it has its id, and nothing is in it yet. ``index`` is its place in the output."""

    index: int
    item: Item


@dataclass(frozen=True, slots=True)
class ItemGrew:
    """More of the item that was added last: of its text or, if it is a call, of its arguments.

    Attributes:
        item: as it was added.
        tokens: of a message whose log-probabilities were asked for.
    """

    index: int
    item: Item
    delta: str
    tokens: tuple[ChosenToken, ...] = ()


@dataclass(frozen=True, slots=True)
class ItemDone:
    """The item that was added last is whole, or will stay as it is."""

    index: int
    item: Item


ItemChange = ItemAdded | ItemGrew | ItemDone


@dataclass(slots=True)
class _Open:
    """The item that grows."""

    item: MessageItem | CallItem | ReasoningItem
    call_number: int | None = None
    pieces: list[str] = field(default_factory=list)
    tokens: list[ChosenToken] = field(default_factory=list)

    def closed(self, status: ItemStatus) -> Item:
        text = "".join(self.pieces)
        if isinstance(self.item, MessageItem):
            return replace(self.item, texts=(text,), status=status, tokens=tuple(self.tokens))
        if isinstance(self.item, CallItem):
            return replace(self.item, arguments=text, status=status)
        return replace(self.item, texts=(text,), status=status)


class GrowingOutput:
    """The output so far. ``finish_reason`` is none until the part that ends the answer has been added."""

    def __init__(self) -> None:
        self._done: list[Item] = []
        self._open: _Open | None = None
        self.finish_reason: str | None = None

    @property
    def items(self) -> tuple[Item, ...]:
        """Those that are done."""
        return tuple(self._done)

    def add(self, part: Part) -> Iterator[ItemChange]:
        """What the part changes. An answer without any content is an empty message."""
        if part.reasoning:
            if not self._is_open(ReasoningItem):
                yield from self._begin(ReasoningItem(new_item_id(ReasoningItem), (), status="in_progress"))
            yield from self._grow(part.reasoning)
        if part.text or (part.tokens and self._is_open(MessageItem)):
            yield from self._say(part.text, part.tokens)
        if part.tool_call is not None:
            yield from self._call(part.tool_call)
        if part.finish_reason is not None:
            self.finish_reason = part.finish_reason
            if self._open is None and not self._done:
                yield from self._say("", part.tokens)
            yield from self._close("incomplete" if part.finish_reason == FinishReason.LENGTH else "completed")

    def _say(self, text: str, tokens: tuple[ChosenToken, ...]) -> Iterator[ItemChange]:
        if not self._is_open(MessageItem):
            yield from self._begin(MessageItem(new_item_id(MessageItem), "assistant", (), "in_progress"))
        yield from self._grow(text, tokens)

    def _call(self, part: ToolCallPart) -> Iterator[ItemChange]:
        if not self._is_open(CallItem, part.number):
            call = CallItem(new_item_id(CallItem), part.call_id or "", part.name or "", "", "in_progress")
            yield from self._begin(call, part.number)
        yield from self._grow(part.arguments)

    def _is_open(self, kind: type[Item], number: int | None = None) -> bool:
        return self._open is not None and isinstance(self._open.item, kind) and self._open.call_number == number

    def _begin(self, item: MessageItem | CallItem | ReasoningItem, number: int | None = None) -> Iterator[ItemChange]:
        yield from self._close("completed")
        self._open = _Open(item, number)
        yield ItemAdded(len(self._done), item)

    def _grow(self, delta: str, tokens: tuple[ChosenToken, ...] = ()) -> Iterator[ItemChange]:
        if self._open is not None and (delta or tokens):
            self._open.pieces.append(delta)
            self._open.tokens += tokens
            yield ItemGrew(len(self._done), self._open.item, delta, tokens)

    def _close(self, status: ItemStatus) -> Iterator[ItemChange]:
        if self._open is not None:
            item = self._open.closed(status)
            yield ItemDone(len(self._done), item)
            self._done.append(item)
            self._open = None

"""What may be sent to ``/v1/responses`` as ``input``: a text, or items."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from inferapi.api.openai.message_schema import CallId
from inferapi.api.openai.schema import Identifier, PlainText, require_few_parts
from inferapi.api.openai.strictness import OpenAiBody, Tolerated
from inferapi.application.response_items import (
    CallItem,
    CallOutputItem,
    Item,
    MessageItem,
    ReasoningItem,
    new_item_id,
)

MAX_ITEMS = 2048
_MOST_PARTS = 256

ItemType = Literal["message", "function_call", "function_call_output", "reasoning"]

# Clients send back the items that they were given.
_ABOUT_ANSWERS = "they are about answers, and models do not read them"
_PART: Mapping[str, Tolerated] = {
    "annotations": Tolerated(_ABOUT_ANSWERS, types=(list,)),
    "logprobs": Tolerated(_ABOUT_ANSWERS, types=(list,)),
    "parsed": Tolerated("the text says it", types=(dict, list, str, int, bool)),
    "prompt_cache_breakpoint": Tolerated("prefixes are found again without it"),
}
_ITEM: Mapping[str, Tolerated] = {
    "id": Tolerated("items get ids of their own", types=(str,)),
    "status": Tolerated("items are read as they are", types=(str,)),
    "phase": Tolerated("models here know no phases", types=(str,)),
    "encrypted_content": Tolerated("reasoning is not encrypted here"),
    "caller": Tolerated("calls are the model's own", values=({"type": "direct"},)),
    "namespace": Tolerated("functions have no namespaces"),
    "created_by": Tolerated("whoever sends an item made it", types=(str,)),
    "parsed_arguments": Tolerated("the arguments say it", types=(dict,)),
}
_NEEDED: dict[ItemType, tuple[str, ...]] = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": ("summary",),
}
_POSSIBLE: dict[ItemType, tuple[str, ...]] = {"reasoning": ("content",), "function_call_output": ("name",)}
_PARTS: dict[ItemType, tuple[str, ...]] = {
    "message": ("input_text", "output_text"),
    "function_call_output": ("input_text",),
    "reasoning": ("reasoning_text",),
}


class ItemTextPart(OpenAiBody):
    """A piece of text. Only text is taken."""

    tolerated = _PART

    type: Literal["input_text", "output_text", "reasoning_text"]
    text: PlainText


class ItemSummaryPart(OpenAiBody):
    """A piece of a summary of reasoning."""

    type: Literal["summary_text"]
    text: PlainText


def _as_parts(content: Any) -> Any:
    return [{"type": "input_text", "text": content}] if isinstance(content, str) else content


TextParts = Annotated[list[ItemTextPart], Field(fail_fast=True, max_length=_MOST_PARTS)]
Content = Annotated[TextParts, BeforeValidator(_as_parts, json_schema_input_type=PlainText | TextParts)]


class InputItem(OpenAiBody):
    """A message, a call of a function, what a call came to, or the reasoning of an earlier answer."""

    tolerated = _ITEM

    type: ItemType | None = Field(None, description="Default: message.")
    role: Literal["user", "assistant", "system", "developer"] | None = Field(None, description="Of a message.")
    content: Content | None = Field(None, description="Of a message; of reasoning, where it is told.")
    call_id: CallId | None = Field(None, description="Of a function_call, and of its function_call_output.")
    name: Identifier | None = Field(None, description="Of a function_call: the function.")
    arguments: PlainText | None = Field(None, description="Of a function_call: JSON as text.")
    output: Content | None = Field(None, description="Of a function_call_output.")
    summary: Annotated[list[ItemSummaryPart], Field(fail_fast=True, max_length=_MOST_PARTS)] | None = Field(
        None, description="Of reasoning. May be empty."
    )

    @property
    def kind(self) -> ItemType:
        """What it is."""
        return self.type or "message"

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        missing = [name for name in _NEEDED[self.kind] if getattr(self, name) is None]
        if missing:
            raise ValueError(f"a {self.kind} needs {' and '.join(missing)}")
        possible = _PARTS.get(self.kind, ())
        if possible and any(part.type not in possible for part in [*(self.content or ()), *(self.output or ())]):
            raise ValueError(f"the parts of a {self.kind} are {' or '.join(possible)}")
        return self

    def unsupported(self) -> Iterator[tuple[str, str]]:
        """Fields that only other kinds of items have."""
        known = {"type", *_NEEDED[self.kind], *_POSSIBLE.get(self.kind, ())}
        for name in type(self).model_fields:
            if name not in known and getattr(self, name) is not None:
                yield name, f"a {self.kind} has none"

    def item(self) -> Item:
        """The item, with an id of its own: a client may send the same one twice."""
        texts = _texts(self.content)
        if self.kind == "function_call":
            return CallItem(new_item_id(CallItem), self.call_id or "", self.name or "", self.arguments or "")
        if self.kind == "function_call_output":
            return CallOutputItem(new_item_id(CallOutputItem), self.call_id or "", "".join(_texts(self.output)))
        if self.kind == "reasoning":
            summaries = tuple(part.text for part in self.summary or ())
            return ReasoningItem(new_item_id(ReasoningItem), texts, summaries)
        return MessageItem(new_item_id(MessageItem), self.role or "user", texts)


def _texts(parts: list[ItemTextPart] | None) -> tuple[str, ...]:
    return tuple(part.text for part in parts or ())


def _as_items(items: Any) -> Any:
    return [{"role": "user", "content": items}] if isinstance(items, str) else require_few_parts(items)


InputItems = Annotated[list[InputItem], Field(fail_fast=True, min_length=1, max_length=MAX_ITEMS)]
Input = Annotated[InputItems, BeforeValidator(_as_items, json_schema_input_type=PlainText | InputItems)]

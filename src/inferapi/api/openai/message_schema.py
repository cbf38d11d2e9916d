"""Messages of a conversation, as ``/v1/chat/completions`` takes them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from inferapi.api.openai.schema import Identifier, PlainText
from inferapi.api.openai.strictness import MESSAGE, TOOL_CALL, TOOL_CALL_FUNCTION, OpenAiBody
from inferapi.domain.chat import Message, Role, ToolCall

_MOST_PARTS = 256
_MOST_CALLS = 128
_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}

CallId = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class TextPart(OpenAiBody):
    """A piece of a message. Only text is taken."""

    type: Literal["text"]
    text: PlainText


def _as_parts(content: Any) -> Any:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


TextParts = Annotated[list[TextPart], Field(fail_fast=True, min_length=1, max_length=_MOST_PARTS)]
Content = Annotated[TextParts, BeforeValidator(_as_parts, json_schema_input_type=PlainText | TextParts)]


class CalledFunction(OpenAiBody):
    """What a model asked to be called. The arguments are as it wrote them."""

    tolerated = TOOL_CALL_FUNCTION

    name: Identifier
    arguments: PlainText


class CallBody(OpenAiBody):
    """A call of an earlier answer."""

    tolerated = TOOL_CALL

    id: CallId
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(OpenAiBody):
    """One message of the conversation. ``developer`` is another word for ``system``."""

    tolerated = MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = Field(None, description="Null only beside tool_calls.")
    name: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    tool_calls: Annotated[list[CallBody], Field(fail_fast=True, max_length=_MOST_CALLS)] | None = None
    tool_call_id: CallId | None = Field(None, description="Of a tool's message: the call that it answers.")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.content is None and not self.tool_calls:
            raise ValueError("content is missing")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only an assistant has tool_calls")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("a tool's message has a tool_call_id, and no other has one")
        return self

    def message(self) -> Message:
        """The message, its parts one after another."""
        return Message(
            role=_ROLES[self.role],
            content="".join(part.text for part in self.content or ()),
            name=self.name,
            tool_calls=tuple(
                ToolCall(call.id, call.function.name, call.function.arguments) for call in self.tool_calls or ()
            ),
            tool_call_id=self.tool_call_id,
        )

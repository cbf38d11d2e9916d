"""Responses as the manual describes them. What is sent is built without them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from inferapi.api.openai.replies import ERRORS, TokenReply

Status = Literal["in_progress", "completed", "incomplete"]

EXAMPLE_EVENTS = """\
event: response.created
data: {"type":"response.created","sequence_number":0,"response":{"id":"resp_…","object":"response",…}}

event: response.output_text.delta
data: {"type":"response.output_text.delta","sequence_number":4,"item_id":"msg_…","output_index":0,"content_index":0,\
"delta":"Hello","logprobs":[]}

event: response.completed
data: {"type":"response.completed","sequence_number":8,"response":{"id":"resp_…","status":"completed",…}}

"""


class InputTextReply(BaseModel):
    """Text that was sent."""

    type: Literal["input_text"]
    text: str


class OutputTextReply(BaseModel):
    """Text of an answer."""

    type: Literal["output_text"]
    text: str
    annotations: list[Any]
    logprobs: list[TokenReply]


class ReasoningTextReply(BaseModel):
    """Text of reasoning."""

    type: Literal["reasoning_text"]
    text: str


class SummaryTextReply(BaseModel):
    """Text of a summary that was sent."""

    type: Literal["summary_text"]
    text: str


class MessageItemReply(BaseModel):
    """A message."""

    id: str
    type: Literal["message"]
    status: Status
    role: Literal["user", "assistant", "system", "developer"]
    content: list[Annotated[InputTextReply | OutputTextReply, Field(discriminator="type")]]


class CallItemReply(BaseModel):
    """A call that the model asks for. The arguments are as it wrote them."""

    id: str
    type: Literal["function_call"]
    status: Status
    call_id: str
    name: str
    arguments: str


class CallOutputItemReply(BaseModel):
    """What a call came to."""

    id: str
    type: Literal["function_call_output"]
    status: Status
    call_id: str
    output: str


class ReasoningItemReply(BaseModel):
    """What the model thought before it answered."""

    id: str
    type: Literal["reasoning"]
    status: Status
    summary: list[SummaryTextReply]
    content: list[ReasoningTextReply]


ItemReply = Annotated[
    MessageItemReply | CallItemReply | CallOutputItemReply | ReasoningItemReply, Field(discriminator="type")
]


class FailureReply(BaseModel):
    """Why a response failed."""

    code: str
    message: str


class IncompleteReply(BaseModel):
    """Why a response is not complete."""

    reason: Literal["max_output_tokens"]


class InputTokensReply(BaseModel):
    """Of the input's tokens."""

    cached_tokens: int
    cache_write_tokens: int


class OutputTokensReply(BaseModel):
    """Of the output's tokens. Those of reasoning are among them, and are not counted apart."""

    reasoning_tokens: int


class ResponseUsageReply(BaseModel):
    """Tokens counted."""

    input_tokens: int
    input_tokens_details: InputTokensReply
    output_tokens: int
    output_tokens_details: OutputTokensReply
    total_tokens: int


class ResponseReply(BaseModel):
    """A response: what was answered, and the settings it was asked for with."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    completed_at: int | None
    background: Literal[False]
    error: FailureReply | None
    incomplete_details: IncompleteReply | None
    model: str
    output: list[ItemReply]
    usage: ResponseUsageReply | None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    user: str | None
    warnings: list[str] = Field([], description="Parameters that were ignored, where the server is told to be lenient.")


class DeletedReply(BaseModel):
    """A response that is forgotten."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ItemsReply(BaseModel):
    """Items of a response's input."""

    object: Literal["list"]
    data: list[ItemReply]
    first_id: str | None
    last_id: str | None
    has_more: bool


STORED_ERRORS: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    404: {**ERRORS[404], "description": "No such response, or no such model: unknown, expired or another key's."},
}
"""The errors of every route here."""

_STREAM = {
    "schema": {"type": "string", "description": "Typed events; the last one says how it ended. Comments in silence."},
    "example": EXAMPLE_EVENTS,
}
RESPONSE_OR_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "The response, whole or as events.", "content": {"text/event-stream": _STREAM}},
    **STORED_ERRORS,
}
"""Of the route that answers."""

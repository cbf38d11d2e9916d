"""Answers under ``/v1`` as the manual describes them. What is sent is built without them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class ErrorObject(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = Field(description="The field that is wrong, where one is.")
    code: str


class ErrorReply(BaseModel):
    """An error in OpenAI's shape."""

    error: ErrorObject


class PromptTokensDetails(BaseModel):
    """Of the prompt's tokens."""

    cached_tokens: int


class CompletionTokensDetails(BaseModel):
    """Of the tokens of all choices."""

    reasoning_tokens: int


class UsageReply(BaseModel):
    """Tokens counted: the prompt's once, those of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class FunctionReply(BaseModel):
    """A function and its arguments, as the model wrote them."""

    name: str
    arguments: str


class ToolCallReply(BaseModel):
    """A call that the model asks for."""

    id: str
    type: Literal["function"]
    function: FunctionReply


class ChatCompletionMessage(BaseModel):
    """The answer's message."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = Field("", description="Only of models that reason.")
    tool_calls: list[ToolCallReply] = []


class ChanceReply(BaseModel):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class TokenReply(ChanceReply):
    """A token of the answer, and the likeliest ones in its place."""

    top_logprobs: list[ChanceReply]


class LogprobsReply(BaseModel):
    """Log-probabilities of an answer's tokens."""

    content: list[TokenReply]
    refusal: None


class ChatChoiceReply(BaseModel):
    """One choice."""

    index: int
    message: ChatCompletionMessage
    logprobs: LogprobsReply | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(BaseModel):
    """A chat completion."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoiceReply]
    usage: UsageReply
    warnings: list[str] = Field([], description="Parameters that were ignored, where the server is told to be lenient.")


class TokenTableReply(BaseModel):
    """Log-probabilities in OpenAI's older shape."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class TextChoiceReply(BaseModel):
    """One choice."""

    index: int
    text: str
    logprobs: TokenTableReply | None
    finish_reason: Literal["stop", "length"]


class TextCompletion(BaseModel):
    """A completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoiceReply]
    usage: UsageReply
    warnings: list[str] = []


class VectorReply(BaseModel):
    """One vector: numbers, or base64 of their little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens counted."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsReply(BaseModel):
    """A vector for each input, in order."""

    object: Literal["list"]
    data: list[VectorReply]
    model: str
    usage: EmbeddingUsage
    warnings: list[str] = []


class ModelReply(BaseModel):
    """A model that can be named."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    state: str = Field(description="As in /status: unloaded, loading, ready, …")


class ModelsReply(BaseModel):
    """Every model that can be named without asking the hub."""

    object: Literal["list"]
    data: list[ModelReply]


_MEANINGS = {
    400: "A parameter is wrong, or is not supported: `param` names it. Or the prompt is too long.",
    401: "A valid API key is needed.",
    403: "The key's scopes, or the operator's list of models, do not allow it; or the model is gated.",
    404: "There is no such model.",
    408: "The request did not come whole in time.",
    409: "Not now: a change of models is under way, or a load was cancelled.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    422: "The model cannot be served, or can never fit this machine.",
    429: "This key asks for more than its share; `Retry-After` says when to come again.",
    500: "Something went wrong here.",
    503: "Too busy, no memory, no hub, or the model's process ended: `Retry-After` says when to come again.",
    504: "It was not finished in time; `x-should-retry: false`.",
    507: "The disk has no room for the model; `x-should-retry: false`.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorReply, "description": meaning} for status, meaning in _MEANINGS.items()
}
"""The errors of every route here."""

"""The body of ``/v1/chat/completions``."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from inferapi.api.openai.message_schema import ChatMessage
from inferapi.api.openai.schema import (
    Identifier,
    JsonText,
    OpenAiPolicy,
    SamplingBody,
    TokenLimit,
    refused,
    require_few_parts,
)
from inferapi.api.openai.strictness import CHAT, OpenAiBody
from inferapi.api.openai.tool_schema import MAX_TOOLS, Description, ToolBody, ToolChoiceField, chosen
from inferapi.application.tool_choice import ToolChoice
from inferapi.domain.generation import Constraint, ConstraintKind, Prompt, SamplingParams

MAX_TOP_LOGPROBS = 20
_MOST_MESSAGES = 2048
_ANY_OBJECT = '{"type":"object"}'


class JsonSchemaBody(OpenAiBody):
    """A schema that the answer keeps to, strict or not."""

    name: Identifier
    description: Description | None = None
    json_schema: JsonText = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(OpenAiBody):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaBody | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("json_schema stands where the type is json_schema, and nowhere else")
        return self

    def constraint(self) -> Constraint | None:
        """The constraint, if there is one."""
        if self.type == "text":
            return None
        schema = self.json_schema.json_schema if self.json_schema else _ANY_OBJECT
        return Constraint(ConstraintKind.JSON_SCHEMA, schema)


class ChatCompletionBody(SamplingBody):
    """A conversation to go on with."""

    tolerated = CHAT

    messages: Annotated[
        list[ChatMessage],
        Field(fail_fast=True, min_length=1, max_length=_MOST_MESSAGES),
        BeforeValidator(require_few_parts),
    ]
    max_completion_tokens: TokenLimit | None = Field(
        None, description="Default: what the context window has room for, at most the server's limit."
    )
    max_tokens: TokenLimit | None = Field(None, description="The older name; max_completion_tokens goes before.")
    logprobs: bool | None = Field(None, description="Tell the log-probabilities of the tokens.")
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[ToolBody], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoiceField | None = Field(None, description="Default: auto beside tools, else none.")
    parallel_tool_calls: bool | None = Field(None, description="False: one call at most. Default: true.")

    def prompt(self) -> Prompt:
        """The messages, and the tools that the model is told of."""
        tools = tuple(tool.tool() for tool in self.tools or ())
        return Prompt(messages=tuple(message.message() for message in self.messages), tools=tools)

    def choice(self) -> ToolChoice:
        """Which tools are called.

        Raises:
            InvalidRequest: it names none of the tools, or there are none, or two have the same name.
        """
        names = [tool.function.name for tool in self.tools or ()]
        return chosen(self.tool_choice.choice() if self.tool_choice else None, names)

    @property
    def limit_tokens(self) -> int | None:
        """The most tokens of a choice, if the client says so."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def chat_sampling(self, policy: OpenAiPolicy) -> SamplingParams:
        """The parameters for the engine.

        Raises:
            InvalidRequest: fields contradict each other, or the server's limits.
        """
        if self.top_logprobs is not None and not self.logprobs:
            raise refused("top_logprobs", "only beside logprobs")
        return self.sampling(
            self.limit_tokens,
            policy,
            limit_param="max_tokens" if self.max_completion_tokens is None else "max_completion_tokens",
            top_logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            constraint=self.response_format.constraint() if self.response_format else None,
        )

"""Settings of ``POST /v1/responses`` that are objects: tools and their choice, the text's format, reasoning."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from inferapi.api.openai.schema import Identifier, JsonText
from inferapi.api.openai.strictness import CHAT, OpenAiBody, Tolerated
from inferapi.api.openai.tool_schema import Description
from inferapi.application import tool_choice
from inferapi.application.tool_choice import ToolChoice
from inferapi.domain.generation import Constraint, ConstraintKind, Tool

_ANY_OBJECT = '{"type":"object"}'
_NO_PARAMETERS = '{"type":"object","properties":{}}'
_REASONING: Mapping[str, Tolerated] = {
    "effort": CHAT["reasoning_effort"],
    "summary": Tolerated("reasoning is told as it is"),
    "generate_summary": Tolerated("reasoning is told as it is"),
    "context": Tolerated("models do not read the reasoning of earlier turns", values=("auto", "current_turn")),
    "mode": Tolerated("there is one mode", values=("standard",)),
}
_TEXT: Mapping[str, Tolerated] = {"verbosity": CHAT["verbosity"]}
_TOOL: Mapping[str, Tolerated] = {
    "allowed_callers": Tolerated("calls are the model's own", values=(["direct"],)),
    "defer_loading": Tolerated("models are told of all tools", values=(False,)),
    "output_schema": Tolerated("models are not told what a call comes to"),
}


class ResponseTool(OpenAiBody):
    """A tool. Only functions are taken."""

    tolerated = _TOOL

    type: Literal["function"]
    name: Identifier
    description: Description | None = None
    parameters: JsonText | None = Field(None, description="A JSON schema of the arguments. Without one: none.")
    strict: bool | None = Field(
        None, description="The arguments keep to the schema. Where a call is required they do in any case."
    )

    def tool(self) -> Tool:
        """The tool."""
        parameters = self.parameters or _NO_PARAMETERS
        return Tool(self.name, self.description or "", parameters, is_strict=bool(self.strict))

    def told(self) -> dict[str, object]:
        """As the response tells it."""
        return {
            "type": "function",
            "name": self.name,
            "description": self.description,
            "parameters": json.loads(self.parameters) if self.parameters is not None else None,
            "strict": bool(self.strict),
        }


class NamedResponseTool(OpenAiBody):
    """A function by its name: this one is called."""

    type: Literal["function"]
    name: Identifier


class ResponseToolChoice(OpenAiBody):
    """Whether tools are called, and which."""

    type: Literal["none", "auto", "required", "function"]
    name: Identifier | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.name is not None) != (self.type == "function"):
            raise ValueError("a function is named where the type is function, and nowhere else")
        return self

    def choice(self) -> ToolChoice:
        """The choice."""
        if self.name is not None:
            return ToolChoice.named(self.name)
        words = {"none": tool_choice.NONE, "auto": tool_choice.AUTO, "required": tool_choice.REQUIRED}
        return words[self.type]

    def told(self) -> object:
        """As the response tells it."""
        return self.type if self.name is None else {"type": self.type, "name": self.name}


def _as_object(choice: Any) -> Any:
    return {"type": choice} if isinstance(choice, str) and choice != "function" else choice


ToolChoiceField = Annotated[
    ResponseToolChoice,
    BeforeValidator(_as_object, json_schema_input_type=Literal["none", "auto", "required"] | NamedResponseTool),
]


class TextFormat(OpenAiBody):
    """What the answer must look like."""

    type: Literal["text", "json_object", "json_schema"]
    name: Identifier | None = None
    description: Description | None = None
    json_schema: JsonText | None = Field(None, alias="schema", description="The answer keeps to it, strict or not.")
    strict: bool | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        of_schema = (self.name, self.json_schema)
        if self.type == "json_schema" and None in of_schema:
            raise ValueError("a json_schema has a name and a schema")
        beside = (*of_schema, self.description, self.strict)
        if self.type != "json_schema" and any(value is not None for value in beside):
            raise ValueError("only a json_schema has more than its type")
        return self

    def constraint(self) -> Constraint | None:
        """The constraint, if there is one."""
        if self.type == "text":
            return None
        return Constraint(ConstraintKind.JSON_SCHEMA, self.json_schema or _ANY_OBJECT)

    def told(self) -> dict[str, object]:
        """As the response tells it."""
        if self.json_schema is None:
            return {"type": self.type}
        return {
            "type": self.type,
            "name": self.name,
            "description": self.description,
            "schema": json.loads(self.json_schema),
            "strict": bool(self.strict),
        }


class TextConfig(OpenAiBody):
    """About the text of the answer."""

    tolerated = _TEXT

    format: TextFormat | None = None


class ReasoningConfig(OpenAiBody):
    """About reasoning. Models that reason do; nothing of it can be set."""

    tolerated = _REASONING

"""Tools that a model may call, and which of them it calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from inferapi.api.openai.schema import Identifier, JsonText, refused
from inferapi.api.openai.strictness import OpenAiBody
from inferapi.application import tool_choice
from inferapi.application.tool_choice import ToolChoice
from inferapi.domain.generation import Tool

MAX_TOOLS = 128
_NO_PARAMETERS = '{"type":"object","properties":{}}'

Description = Annotated[str, StringConstraints(max_length=16_384)]


class FunctionBody(OpenAiBody):
    """A function that the model may ask to be called."""

    name: Identifier
    description: Description | None = None
    parameters: JsonText | None = Field(None, description="A JSON schema of the arguments. Without one: none.")
    strict: bool | None = Field(
        None, description="The arguments keep to the schema. Where a call is required they do in any case."
    )


class ToolBody(OpenAiBody):
    """A tool. Only functions are taken."""

    type: Literal["function"]
    function: FunctionBody

    def tool(self) -> Tool:
        """The tool."""
        function = self.function
        parameters = function.parameters or _NO_PARAMETERS
        return Tool(function.name, function.description or "", parameters, is_strict=bool(function.strict))


class NamedFunction(OpenAiBody):
    """A function by its name."""

    name: Identifier


class NamedTool(OpenAiBody):
    """A tool by its name: this one is called."""

    type: Literal["function"]
    function: NamedFunction


class ToolChoiceBody(OpenAiBody):
    """Whether tools are called, and which."""

    type: Literal["none", "auto", "required", "function"]
    function: NamedFunction | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.function is not None) != (self.type == "function"):
            raise ValueError("a function is named where the type is function, and nowhere else")
        return self

    def choice(self) -> ToolChoice:
        """The choice."""
        if self.function is not None:
            return ToolChoice.named(self.function.name)
        words = {"none": tool_choice.NONE, "auto": tool_choice.AUTO, "required": tool_choice.REQUIRED}
        return words[self.type]


def chosen(choice: ToolChoice | None, names: Sequence[str]) -> ToolChoice:
    """The choice among tools of these names; as the model likes, where nobody says.

    Raises:
        InvalidRequest: it names none of the tools, or there are none, or two have the same name.
    """
    if len(set(names)) < len(names):
        raise refused("tools", "two of them have the same name")
    choice = choice or tool_choice.AUTO
    tool_choice.require_among(choice, names)  # before a model is loaded for it
    return choice


def _as_object(choice: Any) -> Any:
    return {"type": choice} if isinstance(choice, str) and choice != "function" else choice


ToolChoiceField = Annotated[
    ToolChoiceBody, BeforeValidator(_as_object, json_schema_input_type=Literal["none", "auto", "required"] | NamedTool)
]

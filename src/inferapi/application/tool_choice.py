"""Which tools a model may, must or must not call, and what its answer must look like for that."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

from inferapi.application.answer_grammar import MOST_CALLS, AnswerGrammar
from inferapi.application.tool_calls import TOOL_FORMATS
from inferapi.domain.errors import InvalidRequest
from inferapi.domain.generation import ConstraintKind, SamplingParams, Tool
from inferapi.domain.model import EngineFacts


class ToolChoiceKind(StrEnum):
    """What a client may say about calls."""

    AUTO = "auto"
    NONE = "none"
    REQUIRED = "required"
    NAMED = "named"


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether there are calls: as the model likes, never, at least one, or of the tool called ``name``."""

    kind: ToolChoiceKind = ToolChoiceKind.AUTO
    name: str | None = None

    @classmethod
    def named(cls, name: str) -> Self:
        """A call of this tool and of no other."""
        return cls(ToolChoiceKind.NAMED, name)

    @property
    def is_forced(self) -> bool:
        """The answer must be calls."""
        return self.kind in {ToolChoiceKind.REQUIRED, ToolChoiceKind.NAMED}


AUTO = ToolChoice()
NONE = ToolChoice(ToolChoiceKind.NONE)
REQUIRED = ToolChoice(ToolChoiceKind.REQUIRED)


def require_among(choice: ToolChoice, names: Collection[str]) -> None:
    """Refuse a choice that the tools of these ``names`` do not allow.

    Raises:
        InvalidRequest: it asks for a call where there are no tools, or names none of them.
    """
    if choice.is_forced and not names:
        raise InvalidRequest(problem="tool_choice: there are no tools")
    if choice.name is not None and choice.name not in names:
        raise InvalidRequest(problem="tool_choice: it names none of the tools")


def offered(tools: Sequence[Tool], choice: ToolChoice, facts: EngineFacts) -> tuple[Tool, ...]:
    """The tools that the model is told of.

    Raises:
        InvalidRequest: there are none to choose from, or the model does not know how to call any.
    """
    require_among(choice, {tool.name for tool in tools})
    if not tools or choice.kind is ToolChoiceKind.NONE:
        return ()
    if facts.tool_format not in TOOL_FORMATS:
        raise InvalidRequest(
            problem=f"tools: the chat template of model {facts.model} knows none, "
            "or writes calls in a way that is not known here"
        )
    return tuple(tools)


def constrained(
    sampling: SamplingParams, tools: Sequence[Tool], choice: ToolChoice, facts: EngineFacts, *, is_parallel: bool
) -> SamplingParams:
    """The sampling that makes the answer what was asked for: calls, a value, or whatever the model likes.

    Where calls are forced there is no text that a response format could be about. Where they are free, the answer is
    a value of that format or calls. Reasoning goes before either.

    Raises:
        InvalidRequest: a schema that is none.
    """
    wanted = sampling.constraint
    grammar = AnswerGrammar(facts)
    most_calls = MOST_CALLS if is_parallel else 1
    if choice.is_forced:
        callable_tools = [tool for tool in tools if choice.name in {None, tool.name}]
        return replace(sampling, constraint=grammar.calls(callable_tools, most=most_calls))
    if wanted is not None and tools:
        return replace(sampling, constraint=grammar.value_or_calls(wanted.definition, tools, most=most_calls))
    if any(tool.is_strict for tool in tools):
        return replace(sampling, constraint=grammar.text_or_calls(tools, most=most_calls))
    if wanted is not None and wanted.kind is ConstraintKind.JSON_SCHEMA and facts.reasoning_tags is not None:
        return replace(sampling, constraint=grammar.value(wanted.definition))
    return sampling

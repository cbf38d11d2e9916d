"""An answer of one choice or several, as it comes and put together: the seam between generation and the API."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from inferapi.domain.chat import ToolCall
from inferapi.domain.generation import ChosenToken, Timings, Usage


@dataclass(frozen=True, slots=True)
class ToolCallPart:
    """A piece of a choice's ``number``-th call, counted from 0.

    Attributes:
        call_id: with ``name`` on the call's first part only.
        arguments: a piece of the JSON text.
    """

    number: int
    call_id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of choice ``index``: one kind of content at most, or only tokens or the end.

    Attributes:
        tokens: log-probabilities, where they were asked for, of the tokens whose text this piece ends with.
        finish_reason: ``stop``, ``length`` or ``tool_calls``: on the last part of a choice.
    """

    index: int
    text: str = ""
    reasoning: str = ""
    tool_call: ToolCallPart | None = None
    tokens: tuple[ChosenToken, ...] = ()
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """The first item of an answer, before any part: the model that answers."""

    model: str


@dataclass(frozen=True, slots=True)
class Completed:
    """The last item of an answer.

    Attributes:
        usage: the prompt's tokens counted once, the completion tokens of all choices.
        timings: of each choice, in their order.
    """

    usage: Usage
    timings: tuple[Timings, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """The parts of one choice put together, for an answer that is not streamed."""

    index: int
    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    tokens: tuple[ChosenToken, ...]
    finish_reason: str


def collected(parts: Iterable[Part]) -> tuple[Choice, ...]:
    """Put the parts of each choice together; the choices come in the order of their indices.

    Raises:
        ValueError: a choice has no end.
    """
    growing: dict[int, _Growing] = {}
    for part in parts:
        growing.setdefault(part.index, _Growing()).add(part)
    return tuple(growing[index].choice(index) for index in sorted(growing))


@dataclass(slots=True)
class _GrowingCall:
    """A call whose arguments have not all come."""

    call_id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Growing:
    """A choice whose parts have not all come."""

    texts: list[str] = field(default_factory=list)
    reasonings: list[str] = field(default_factory=list)
    calls: dict[int, _GrowingCall] = field(default_factory=dict)
    tokens: list[ChosenToken] = field(default_factory=list)
    finish_reason: str | None = None

    def add(self, part: Part) -> None:
        self.texts.append(part.text)
        self.reasonings.append(part.reasoning)
        self.tokens.extend(part.tokens)
        if part.tool_call is not None:
            call = self.calls.setdefault(part.tool_call.number, _GrowingCall())
            call.call_id = part.tool_call.call_id or call.call_id
            call.name = part.tool_call.name or call.name
            call.arguments.append(part.tool_call.arguments)
        if part.finish_reason is not None:
            self.finish_reason = part.finish_reason

    def choice(self, index: int) -> Choice:
        if self.finish_reason is None:
            raise ValueError(f"choice {index} has no end")
        calls = (self.calls[number] for number in sorted(self.calls))
        return Choice(
            index=index,
            text="".join(self.texts),
            reasoning="".join(self.reasonings),
            tool_calls=tuple(ToolCall(call.call_id, call.name, "".join(call.arguments)) for call in calls),
            tokens=tuple(self.tokens),
            finish_reason=self.finish_reason,
        )

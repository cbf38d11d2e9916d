"""Tool calls found in an answer's text, while it comes: Hermes and Qwen, Llama 3, Mistral."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Collection, Generator
from dataclasses import dataclass

from inferapi.application.answer_parts import ToolCallPart
from inferapi.application.answer_pieces import Piece
from inferapi.application.coming_text import ComingText

TOOL_TAGS = {"hermes": "<tool_call>", "llama3": "<|python_tag|>", "mistral": "[TOOL_CALLS]"}
"""What calls begin with in each of the formats that are understood; Llama's may begin an answer without it."""
TOOL_FORMATS = frozenset(TOOL_TAGS)
"""The values of ``EngineFacts.tool_format`` that are understood."""

_ARGUMENTS = frozenset({"arguments", "parameters"})
_OTHERS = frozenset({"id", "type"})  # some models write them too
_ID_CHARACTERS = string.ascii_letters + string.digits
_MISTRAL_ID_CHARACTERS = 9  # its templates refuse ids of another length


@dataclass(slots=True)
class _Call:
    """What is known of an object that is being read, and may be a call."""

    name: str | None = None
    arguments: str | None = None
    is_told: bool = False


class ToolCallParser:
    """Takes an answer's text as it comes; gives text back as text, and calls as calls.

    What may become a call is held back until it is decided: when it has the name of a tool and its arguments begin.
    They are told as they come, and may turn out to be no valid JSON. What is no call is text, every character of it.
    Of white space, what stands before a call, and what ends an answer after one, is left out.

    Args:
        tool_format: one of ``TOOL_FORMATS``.
        names: of the tools that were offered; calls of others are text.
        max_calls: those after it are left out.
        or_value: an answer that does not begin with the tag of a call is a value, and nothing in it is a call.
    """

    def __init__(
        self, tool_format: str, names: Collection[str], *, max_calls: int | None = None, or_value: bool = False
    ) -> None:
        readers = {"hermes": self._hermes, "llama3": self._llama3, "mistral": self._mistral}
        self._names = frozenset(names)
        self._longest_name = max(map(len, names), default=0)
        self._max_calls = max_calls
        self._id_length = _MISTRAL_ID_CHARACTERS if tool_format == "mistral" else None
        self._text = ComingText()
        self._space = ""  # what the text that was told ends with: a call may follow
        self._is_after_call = False
        self._telling: int | None = None  # the call whose arguments are being read
        self._pieces: list[Piece] = []
        answer = readers[tool_format]()
        self._reading = self._read(self._value_or(TOOL_TAGS[tool_format], answer) if or_value else answer)
        self.calls = 0

    def push(self, text: str) -> list[Piece]:
        """Add text; return what is certain now."""
        self._text.add(text)
        return self._read_on()

    def flush(self) -> list[Piece]:
        """What was held back, when no more text comes."""
        self._text.is_complete = True
        return self._read_on()

    def _read_on(self) -> list[Piece]:
        next(self._reading, None)
        if self._telling is not None:
            self._tell_arguments(self._telling)
        pieces, self._pieces = self._pieces, []
        return pieces

    def _read(self, answer: Generator[None]) -> Generator[None]:
        yield from answer
        if self._space and not self._is_after_call:
            self._pieces.append(Piece(self._text.taken_length, text=self._space))

    def _value_or(self, tag: str, calls: Generator[None]) -> Generator[None]:
        yield from self._text.space()
        is_call = yield from self._text.literal(tag)
        self._text.unread()
        if is_call:
            yield from calls
            return
        while True:
            self._text.read_all()
            self._say()
            if self._text.is_complete:
                return
            yield

    # The formats

    def _hermes(self) -> Generator[None]:
        """``<tool_call>{"name": …, "arguments": …}</tool_call>``, each call by itself."""
        while (yield from self._say_up_to("<tool_call>")):
            if (yield from self._object()):
                yield from self._skip("</tool_call>")
            else:
                self._say()

    def _llama3(self) -> Generator[None]:
        """``{"name": …, "parameters": …}; …`` at the beginning of the answer, or after ``<|python_tag|>``."""
        is_open = True
        while is_open:
            while (yield from self._object()):
                yield from self._skip(";")
            self._say()
            is_open = yield from self._say_up_to("<|python_tag|>")

    def _mistral(self) -> Generator[None]:
        """``[TOOL_CALLS][{"name": …, "arguments": …}, …]``, or ``[TOOL_CALLS]name[ARGS]{…}`` for each call."""
        while (yield from self._say_up_to("[TOOL_CALLS]")):
            yield from self._text.space()
            is_list = yield from self._text.literal("[")
            is_call = yield from (self._object() if is_list else self._named())
            while is_list and is_call and (yield from self._skip(",")):
                is_call = yield from self._object()
            if not is_call:
                self._say()
            elif is_list:
                yield from self._skip("]")

    # Calls: each method says whether it was one

    def _object(self) -> Generator[None, None, bool]:
        """White space and an object that is a call."""
        text, call = self._text, _Call()
        yield from text.space()
        has_more = yield from text.literal("{")
        while has_more and (yield from self._member(call)):
            yield from text.space()
            if (yield from text.literal("}")):
                return self._tell_rest(call)
            has_more = yield from text.literal(",")
        return call.is_told

    def _member(self, call: _Call) -> Generator[None, None, bool]:
        text = self._text
        yield from text.space()
        key = yield from text.string()
        yield from text.space()
        if key is None or not (yield from text.literal(":")):
            return False
        yield from text.space()
        if key == "name":
            call.name = yield from text.string()
            return call.name in self._names
        if key in _ARGUMENTS and not call.is_told:
            return (yield from self._arguments(call))
        return key in _ARGUMENTS | _OTHERS and (yield from text.value())

    def _arguments(self, call: _Call) -> Generator[None, None, bool]:
        first = yield from self._text.peek()
        if first == '"':  # some models write the object as a string
            call.arguments = _object_in((yield from self._text.string()))
        elif first == "{" and call.name is not None:
            call.is_told = True
            return (yield from self._tell(call.name))
        elif first == "{":
            call.arguments = yield from self._text.composite()
        return call.arguments is not None

    def _named(self) -> Generator[None, None, bool]:
        """A call such as ``get_weather[ARGS]{"city": "Rome"}``, perhaps with ``[CALL_ID]`` and an id in the middle."""
        text = self._text
        name = yield from text.word(ends_at="[{", most=self._longest_name)
        if name not in self._names:
            return False
        if (yield from text.literal("[CALL_ID]")):
            yield from text.word(ends_at="[{", most=_MISTRAL_ID_CHARACTERS)
        yield from text.literal("[ARGS]")
        yield from text.space()
        if (yield from text.peek()) != "{":
            return False
        yield from self._tell(name)
        return True

    # What becomes of what was read

    def _say_up_to(self, opening: str) -> Generator[None, None, bool]:
        """It is text, up to this tag, which is read; false if the answer ends without one."""
        while True:
            has_come = self._text.read_to(opening)
            self._say()
            if has_come:
                return (yield from self._text.literal(opening))
            if self._text.is_complete:
                return False
            yield

    def _say(self) -> None:
        """It is text. White space at its end waits: a call may follow."""
        text = self._space + self._text.take()
        said = text.rstrip()
        self._space = text[len(said) :]
        if said:
            self._is_after_call = False
            self._pieces.append(Piece(self._text.taken_length - len(self._space), text=said))

    def _skip(self, literal: str) -> Generator[None, None, bool]:
        """White space and this are left out. If it is something else, it is read again."""
        yield from self._text.space()
        has_come = yield from self._text.literal(literal)
        if has_come:
            self._leave_out()
        else:
            self._text.unread()
        return has_come

    def _leave_out(self) -> None:
        if self._text.take():
            self._pieces.append(Piece(self._text.taken_length))

    def _tell(self, name: str) -> Generator[None, None, bool]:
        """It led to a call, whose arguments begin here, told as they come. False if they have no end."""
        number = self._telling = self._begin(name)
        is_whole = (yield from self._text.composite()) is not None
        self._tell_arguments(number)
        self._telling = None
        return is_whole

    def _tell_rest(self, call: _Call) -> bool:
        """It is an object to its end: a call, if it has a name."""
        if call.is_told:
            self._leave_out()
        elif call.name is not None:
            self._add(ToolCallPart(self._begin(call.name), None, None, call.arguments or "{}"))
            call.is_told = True
        return call.is_told

    def _begin(self, name: str) -> int:
        self._space = ""
        self._leave_out()
        self._is_after_call = True
        number = self.calls
        self.calls += 1
        self._add(ToolCallPart(number, self._new_id(), name, ""))
        return number

    def _tell_arguments(self, number: int) -> None:
        arguments = self._text.take()
        if arguments:
            self._add(ToolCallPart(number, None, None, arguments))

    def _add(self, part: ToolCallPart) -> None:
        is_left_out = self._max_calls is not None and part.number >= self._max_calls
        self._pieces.append(Piece(self._text.taken_length, tool_call=None if is_left_out else part))

    def _new_id(self) -> str:
        if self._id_length is None:
            return f"call_{secrets.token_hex(12)}"
        return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(self._id_length))


def _object_in(text: str | None) -> str | None:
    """The text, if it is a JSON object, and one that can be sent on."""
    if text is None:
        return None
    try:
        text.encode()  # half a pair of surrogates can come of an escape
        return text if isinstance(json.loads(text), dict) else None
    except (ValueError, RecursionError):
        return None

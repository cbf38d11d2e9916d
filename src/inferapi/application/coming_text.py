"""Text that is read before all of it has come.

What reads it is a coroutine, suspended where there are no more characters yet: it is written down as if all of the
text were there, and where the text was cut makes no difference.
"""

from __future__ import annotations

import json
from collections.abc import Generator


class ComingText:
    """Characters that came, and how many of them were read. What was read stays until it is taken.

    Attributes:
        taken_length: how many characters were taken so far.
        is_complete: no more will come; reading ends there instead of waiting.
    """

    def __init__(self) -> None:
        self._buffer = ""
        self._at = 0
        self.taken_length = 0
        self.is_complete = False

    def add(self, text: str) -> None:
        """More of it."""
        self._buffer += text

    def take(self) -> str:
        """What was read."""
        taken, self._buffer = self._buffer[: self._at], self._buffer[self._at :]
        self.taken_length += self._at
        self._at = 0
        return taken

    def unread(self) -> None:
        """Nothing was read since the last ``take``."""
        self._at = 0

    def read_to(self, tag: str) -> bool:
        """Read what stands before a tag; if it has not come, what cannot be a part of it. Whether it has come."""
        found = self._buffer.find(tag, self._at)
        if found >= 0:
            self._at = found
        else:
            self._at = len(self._buffer) - (0 if self.is_complete else unfinished(self._buffer, tag))
        return found >= 0

    def read_all(self) -> None:
        """Read what has come."""
        self._at = len(self._buffer)

    # Each reads what it is named for and says whether it was there; what it read of something else stays read

    def peek(self) -> Generator[None, None, str]:
        """The next character, not read by that; nothing at the end."""
        while self._at == len(self._buffer):
            if self.is_complete:
                return ""
            yield
        return self._buffer[self._at]

    def space(self) -> Generator[None]:
        """White space, if there is any."""
        while (yield from self.peek()).isspace():
            self._at += 1

    def word(self, ends_at: str, most: int) -> Generator[None, None, str]:
        """Characters up to white space, one of ``ends_at``, or a few too many."""
        begin = self._at
        while (character := (yield from self.peek())) and not character.isspace() and character not in ends_at:
            if self._at - begin > most:
                break
            self._at += 1
        return self._buffer[begin : self._at]

    def literal(self, literal: str) -> Generator[None, None, bool]:
        """Exactly this; of anything else nothing is read."""
        begin = self._at
        for character in literal:
            if (yield from self.peek()) != character:
                self._at = begin
                return False
            self._at += 1
        return True

    def string(self) -> Generator[None, None, str | None]:
        """The value of a JSON string, if it is one."""
        begin, is_escaped = self._at, False
        if not (yield from self.literal('"')):
            return None
        while character := (yield from self.peek()):
            self._at += 1
            if character == '"' and not is_escaped:
                return _string_of(self._buffer[begin : self._at])
            is_escaped = character == "\\" and not is_escaped
        return None

    def composite(self) -> Generator[None, None, str | None]:
        """From an opening bracket to the one that closes it; what is between need not be valid JSON.

        Returns what was read and not taken meanwhile, or nothing if the text ends before the closing bracket.
        """
        begin, begin_length = self._at, self.taken_length
        depth, is_quoted, is_escaped = 0, False, False
        while character := (yield from self.peek()):
            self._at += 1
            if is_quoted:
                is_quoted = is_escaped or character != '"'
                is_escaped = character == "\\" and not is_escaped
            elif character == '"':
                is_quoted = True
            elif character in "{[":
                depth += 1
            elif character in "}]":
                depth -= 1
                if not depth:
                    return self._buffer[begin if self.taken_length == begin_length else 0 : self._at]
        return None

    def value(self) -> Generator[None, None, bool]:
        """Any JSON value."""
        first = yield from self.peek()
        if first == '"':
            return (yield from self.string()) is not None
        if first and first in "{[":
            return (yield from self.composite()) is not None
        return bool((yield from self.word(ends_at=",}]", most=_LONGEST_SCALAR)))


_LONGEST_SCALAR = 64


def unfinished(text: str, tag: str) -> int:
    """Length of the longest end of ``text`` that ``tag`` begins with, without being all of it."""
    return next((length for length in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:length])), 0)


def _string_of(quoted: str) -> str | None:
    try:
        return str(json.loads(quoted))
    except ValueError:
        return None

"""Reasoning told from the answer proper, while both come."""

from __future__ import annotations

from enum import Enum, auto

from inferapi.application.answer_pieces import Piece
from inferapi.application.coming_text import unfinished


class _Place(Enum):
    BEFORE = auto()
    INSIDE = auto()
    AFTER = auto()


class ReasoningParser:
    """Takes an answer's text as it comes, and gives every character back once, but for the tags.

    An answer reasons once, at its beginning: tags that come later are text like any other. White space before the
    first tag belongs to the reasoning.

    Args:
        tags: what reasoning begins and ends with.
        from_start: the prompt ends with the first of them, so that the answer begins inside. Models that write it
            all the same are understood.
    """

    def __init__(self, tags: tuple[str, str], *, from_start: bool) -> None:
        self._opening, self._closing = tags
        self._from_start = from_start
        self._place = _Place.BEFORE
        self._undecided = ""
        self._end = 0

    @property
    def is_inside(self) -> bool:
        """The answer is reasoning so far."""
        return self._place is _Place.INSIDE

    def push(self, text: str) -> list[Piece]:
        """Add text; return what is certain now. What may become a tag is held back."""
        self._undecided += text
        return self._certain(is_last=False)

    def flush(self) -> list[Piece]:
        """What was held back, when no more text comes."""
        return self._certain(is_last=True)

    def _certain(self, *, is_last: bool) -> list[Piece]:
        pieces: list[Piece] = []
        if self._place is _Place.BEFORE:
            said = self._undecided.lstrip()
            if said.startswith(self._opening):
                pieces += self._take(len(self._undecided) - len(said), tag=self._opening)
                self._place = _Place.INSIDE
            elif is_last or not self._opening.startswith(said):
                self._place = _Place.INSIDE if self._from_start else _Place.AFTER
        if self._place is _Place.INSIDE:
            found = self._undecided.find(self._closing)
            if found >= 0:
                pieces += self._take(found, tag=self._closing)
                self._place = _Place.AFTER
            else:
                held = 0 if is_last else unfinished(self._undecided, self._closing)
                pieces += self._take(len(self._undecided) - held)
        if self._place is _Place.AFTER and self._undecided:
            text, self._undecided = self._undecided, ""
            self._end += len(text)
            pieces.append(Piece(self._end, text=text))
        return pieces

    def _take(self, length: int, tag: str = "") -> list[Piece]:
        """So much reasoning, and the tag behind it."""
        reasoning, self._undecided = self._undecided[:length], self._undecided[length + len(tag) :]
        self._end += length + len(tag)
        return [Piece(self._end, reasoning=reasoning)] if reasoning or tag else []

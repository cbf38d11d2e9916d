"""What is read of an answer's text: its pieces, and where in the text each of them ends."""

from __future__ import annotations

from dataclasses import dataclass

from inferapi.application.answer_parts import ToolCallPart


@dataclass(frozen=True, slots=True)
class Piece:
    """One kind of content, or none where a tag was left out.

    Attributes:
        end: how many characters of the text are told, or left out, with this piece and those before it.
    """

    end: int
    text: str = ""
    reasoning: str = ""
    tool_call: ToolCallPart | None = None

"""The chunks of one choice become its parts: reasoning, text, tool calls, and the tokens of each."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from inferapi.application.answer_parts import Part
from inferapi.application.answer_pieces import Piece
from inferapi.application.reasoning import ReasoningParser
from inferapi.application.tool_calls import ToolCallParser
from inferapi.domain.generation import ChosenToken, Chunk, Finish, FinishReason

TOOL_CALLS = "tool_calls"
"""The finish reason of an answer that ended by itself and has calls."""


class AnswerReader:
    """Reads one choice.

    A token rides on the part in which its last character is told, or on one of its own where that is a tag's.

    Args:
        index: of the choice.
        reasoning: none where the model does not reason.
        calls: none where there are no tools.

    Attributes:
        reasoning_tokens: up to the end of the reasoning, tags included, as far as it has come. Pieces of text count as
            a whole: in the one in which the reasoning ends, so does what follows it.
    """

    def __init__(
        self, index: int, *, reasoning: ReasoningParser | None = None, calls: ToolCallParser | None = None
    ) -> None:
        self._index = index
        self._reasoning = reasoning
        self._calls = calls
        self._length = 0  # of all text that came
        self._reasoned_length = 0  # of the text before that in which calls are looked for
        self._tokens: deque[tuple[int, ChosenToken]] = deque()  # not told yet, and where each of them ends
        self.reasoning_tokens = 0

    def read(self, chunk: Chunk) -> list[Part]:
        """The parts that are certain now. The last part of all says why the choice ended, and has no content."""
        self._await_tokens(chunk)
        parts = [part for piece in self._pieces(chunk) if (part := self._part(piece)) is not None]
        if chunk.finish is not None:
            tokens = tuple(token for _, token in self._tokens)
            parts.append(Part(self._index, tokens=tokens, finish_reason=self._finish_reason(chunk.finish)))
        return parts

    def _pieces(self, chunk: Chunk) -> list[Piece]:
        is_last = chunk.finish is not None
        pieces = [Piece(self._length, text=chunk.text)] if chunk.text else []
        if self._reasoning is not None:
            pieces = self._reasoning.push(chunk.text)
            if is_last:
                pieces += self._reasoning.flush()
            if self._reasoning.is_inside or not all(piece.text for piece in pieces):
                self.reasoning_tokens = chunk.completion_tokens
        if self._calls is None:
            return pieces
        read: list[Piece] = []
        for piece in pieces:
            if piece.text:
                read += self._in_answer(self._calls.push(piece.text))
            else:
                self._reasoned_length = piece.end
                read.append(piece)
        if is_last:
            read += self._in_answer(self._calls.flush())
        return read

    def _in_answer(self, pieces: list[Piece]) -> list[Piece]:
        """Pieces whose ends were counted from the end of the reasoning."""
        if not self._reasoned_length:
            return pieces
        return [replace(piece, end=piece.end + self._reasoned_length) for piece in pieces]

    def _part(self, piece: Piece) -> Part | None:
        tokens: list[ChosenToken] = []
        while self._tokens and self._tokens[0][0] <= piece.end:
            tokens.append(self._tokens.popleft()[1])
        if not (tokens or piece.text or piece.reasoning or piece.tool_call):
            return None
        return Part(self._index, piece.text, piece.reasoning, piece.tool_call, tuple(tokens))

    def _await_tokens(self, chunk: Chunk) -> None:
        """Note where the tokens of this chunk end, counted back from its end."""
        begin, self._length = self._length, self._length + len(chunk.text)
        end, ends = self._length, list[tuple[int, ChosenToken]]()
        for token in reversed(chunk.tokens):
            ends.append((end, token))
            end = max(end - len(token.chance.text), begin)
        self._tokens.extend(reversed(ends))

    def _finish_reason(self, finish: Finish) -> str:
        if self._calls is not None and self._calls.calls and finish.reason is FinishReason.STOP:
            return TOOL_CALLS
        return finish.reason.value

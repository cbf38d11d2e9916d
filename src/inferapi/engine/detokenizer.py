"""Token ids to text, as they come: no broken UTF-8, no stop string, nothing twice.

Decoding a token alone loses what its neighbours decide (spaces, bytes of one character). So each step
decodes a short window with and without the new token and emits the difference, once it is whole; after
text-generation-inference's ``decode_token``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

_CONTEXT_TOKENS = 6
_INCOMPLETE = "\ufffd"
_PATIENCE_TOKENS = 8  # a character has at most 4 bytes; what is still broken then will stay so

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """The text of one answer.

    Args:
        decode: ids to text, special tokens left out.
        prompt_tokens: the end of the prompt is the first window, so that leading spaces are right.
        stop: strings that end the answer.

    Attributes:
        stopped: a stop string was met.
        num_told_tokens: how many of the answer's tokens have their text released; also one that a stop string cut
            short, but none behind it.
    """

    def __init__(self, decode: Decode, prompt_tokens: Sequence[int], stop: Sequence[str]) -> None:
        self._decode = decode
        self._tokens = _whole_characters(decode, prompt_tokens)
        self._num_prompt_tokens = len(self._tokens)
        self._window_start = 0
        self._emitted_end = len(self._tokens)
        self._stop = stop
        self._held = ""
        self._num_released_characters = 0
        self._pieces: deque[tuple[int, int, int]] = deque()  # answer's tokens so far, and where the last's text is
        self.stopped = False
        self.num_told_tokens = 0

    def push(self, token: int, *, may_stop: bool = True) -> str:
        """Add a token; return the text that is certain now. ``stopped`` tells that a stop string was met."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._window_start : self._emitted_end])
        after = self._decode(self._tokens[self._window_start :])
        if len(after) <= len(before):  # a special token has no text
            self._emitted_end = len(self._tokens)
            return self._release("", may_stop=may_stop)
        if after.endswith(_INCOMPLETE) and len(self._tokens) - self._emitted_end < _PATIENCE_TOKENS:
            return ""
        self._window_start, self._emitted_end = self._emitted_end, len(self._tokens)
        return self._release(after[len(before) :], may_stop=may_stop)

    def flush(self) -> str:
        """What was held back, when no more tokens come; what was still broken may turn out to hold a stop string."""
        if self.stopped:
            return ""
        before = self._decode(self._tokens[self._window_start : self._emitted_end])
        after = self._decode(self._tokens[self._window_start :])
        self._window_start = self._emitted_end = len(self._tokens)
        certain = self._release(after[len(before) :], may_stop=True)
        if not self.stopped:
            self.num_told_tokens = self._num_tokens
        held, self._held = self._held, ""
        return certain + held

    @property
    def _num_tokens(self) -> int:
        """Of the answer, as far as their text is known."""
        return self._emitted_end - self._num_prompt_tokens

    def _release(self, text: str, *, may_stop: bool) -> str:
        """What is certain of the text, which the tokens up to ``_emitted_end`` add."""
        if not self._stop:
            self.num_told_tokens = self._num_tokens
            return text
        start = self._num_released_characters + len(self._held)
        self._pieces.append((self._num_tokens, start, start + len(text)))
        certain = self._certain(self._held + text, may_stop=may_stop)
        self._num_released_characters += len(certain)
        while self._pieces and self._is_told(*self._pieces[0][1:]):
            self.num_told_tokens = self._pieces.popleft()[0]
        return certain

    def _certain(self, text: str, *, may_stop: bool) -> str:
        if may_stop:
            found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
            if found:
                self.stopped, self._held = True, ""
                return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _is_told(self, start: int, end: int) -> bool:
        released = self._num_released_characters
        return end <= released or (self.stopped and start < released)


def _whole_characters(decode: Decode, tokens: Sequence[int]) -> list[int]:
    """The last few tokens, fewer if they would begin or end within a character."""
    return next(
        (
            list(tokens[-count:])
            for count in range(min(_CONTEXT_TOKENS, len(tokens)), 0, -1)
            if _INCOMPLETE not in decode(tokens[-count:])
        ),
        [],
    )


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that a stop string begins with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)

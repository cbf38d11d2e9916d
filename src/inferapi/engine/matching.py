"""An answer that keeps to a constraint: which tokens may come next, and how far it has come.

The constraint itself is compiled in ``constraints.py``. No torch here: a sampler takes the masks from here.

Shapes: ``R`` rows, ``T`` tokens of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par

from inferapi.domain.errors import InvalidRequest

_MOST_REASON_CHARACTERS = 200


class AnswerMatcher:
    """How far one answer has come in what it must look like.

    Nothing but ``take`` moves it on: a step that fails leaves it where it was.

    Args:
        matcher: freshly compiled, and no other answer's.
        vocabulary_tokens: the tokens of the tokenizer that it was compiled for.
        field: of the client's request, the one that asked for it; errors name it.
    """

    def __init__(self, matcher: LLMatcher, vocabulary_tokens: int, field: str) -> None:
        self.matcher = matcher
        self.vocabulary_tokens = vocabulary_tokens
        self._field = field

    def take(self, token: int, *, is_end: bool) -> None:
        """The answer goes on with this token, or ends with it.

        Raises:
            InvalidRequest: it cannot: the constraint grew too complex on the way, or no token is left that keeps to it.
        """
        matcher = self.matcher
        # A matcher that failed offers the end of the answer, and would take it too.
        if not matcher.is_error() and ((is_end and matcher.is_accepting()) or matcher.consume_token(token)):
            return
        reason = as_reason(matcher.get_error() or "no token keeps to it")
        raise InvalidRequest(problem=f"{self._field}: the answer could not go on as it asks ({reason}).")

    @property
    def may_end(self) -> bool:
        """What there is keeps to the constraint as it is."""
        return bool(self.matcher.is_accepting())

    @property
    def is_complete(self) -> bool:
        """Nothing may follow but the end."""
        return self.matcher.is_stopped()


class TokenMasks:
    """Which tokens may come next, for all constrained answers of a step at once."""

    def __init__(self) -> None:
        self._executor: LLExecutor | None = None

    def allowed(self, matchers: Sequence[AnswerMatcher]) -> npt.NDArray[np.bool_]:
        """The tokens that each answer may go on with ``[R, T]``, its end among them if it may end.

        Rows are computed side by side, by threads of their own, without the interpreter's lock.
        """
        if self._executor is None:
            try:
                self._executor = LLExecutor()
            except ValueError as error:  # no room for its threads
                raise MemoryError from error
        tokens = matchers[0].vocabulary_tokens
        words = allocate_token_bitmask(len(matchers), tokens)
        fill_next_token_bitmask_par(self._executor, [(each.matcher, row) for row, each in enumerate(matchers)], words)
        bits = np.unpackbits(words.view(np.uint8), axis=1, count=tokens, bitorder="little")
        return bits.view(np.bool_)


def as_reason(error: str) -> str:
    """A library's error, fit for a sentence: its first line, printable and short."""
    line = next((line.strip() for line in error.splitlines() if line.strip()), "")
    printable = "".join(letter if letter.isprintable() else " " for letter in line).rstrip(".")
    return printable if len(printable) <= _MOST_REASON_CHARACTERS else printable[:_MOST_REASON_CHARACTERS] + "..."

"""A conversation: messages, turns and the session that holds them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One utterance."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its complete answer: stored together or not at all.

    Attributes:
        created_at_s: wall-clock time of the end of the answer, seconds since the epoch.
    """

    turn_id: str
    user: str
    assistant: str
    model: str
    created_at_s: float
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation so far. ``version`` counts the stored turns and guards appends."""

    session_id: str
    system_prompt: str
    turns: tuple[Turn, ...] = ()
    version: int = 0

    def messages(self) -> tuple[Message, ...]:
        """The whole history, oldest first, the system prompt in front."""
        history = [Message("system", self.system_prompt)]
        for turn in self.turns:
            history += [Message("user", turn.user), Message("assistant", turn.assistant)]
        return tuple(history)

    def with_turn(self, turn: Turn) -> Session:
        """This session, one turn later."""
        return replace(self, turns=(*self.turns, turn), version=self.version + 1)

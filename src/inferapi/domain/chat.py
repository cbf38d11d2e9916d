"""A conversation: messages, turns and the session that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

Role = Literal["system", "user", "assistant", "tool"]

_TITLE_CHARACTERS = 80


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model asks for. ``arguments`` is JSON, as the model wrote it: it may be none that is valid."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One utterance.

    Attributes:
        name: who speaks, where a client told several users or assistants apart; for templates that know it.
        tool_calls: of an assistant, what it asked for beside its content.
        tool_call_id: of a tool, the call that the content answers.
    """

    role: Role
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None


@dataclass(frozen=True, slots=True)
class SessionRef:
    """Which session. Every owner has ids of its own: the same id of another owner is another session.

    Attributes:
        owner: id of the API key that the session belongs to; empty where the server has no keys.
    """

    owner: str
    session_id: str


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its complete answer: stored together or not at all.

    Attributes:
        created_at_s: wall-clock time of the end of the answer, seconds since the epoch.
        finish_reason: why the answer ended: ``stop`` or ``length``.
        idempotency_key: what the client named the request, to get this answer again should it repeat it.
    """

    turn_id: str
    user: str
    assistant: str
    model: str
    created_at_s: float
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str = "stop"
    idempotency_key: str | None = None

    @property
    def size_bytes(self) -> int:
        """Its texts in UTF-8."""
        return len(self.user.encode()) + len(self.assistant.encode())


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """How much of a conversation is kept: beyond it the oldest turns are forgotten."""

    max_turns: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class SessionChange:
    """What one write does to a session: turns dropped at its ends, then one added."""

    added: Turn | None = None
    dropped_oldest: int = 0
    dropped_newest: int = 0


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation so far.

    Attributes:
        version: counts the writes; 0 is a session that was never stored.
        created_at_s, used_at_s: wall-clock time of the first and of the last write.
        title: how it began, for lists.
        forgotten_turns: turns that were dropped for the limits.
    """

    ref: SessionRef
    system_prompt: str
    created_at_s: float = 0.0
    used_at_s: float = 0.0
    turns: tuple[Turn, ...] = ()
    version: int = 0
    title: str = ""
    forgotten_turns: int = 0

    def messages(self) -> tuple[Message, ...]:
        """The whole history, oldest first, the system prompt in front."""
        history = [Message("system", self.system_prompt)]
        for turn in self.turns:
            history += [Message("user", turn.user), Message("assistant", turn.assistant)]
        return tuple(history)

    def appending(self, turn: Turn, limits: SessionLimits) -> SessionChange:
        """The change that adds ``turn``, and forgets as many of the oldest as the limits ask for."""
        return SessionChange(turn, dropped_oldest=len(self.turns) + 1 - _kept((*self.turns, turn), limits))

    def changed(self, change: SessionChange, at_s: float) -> Session:
        """This session, one write later."""
        turns = self.turns[change.dropped_oldest : len(self.turns) - change.dropped_newest]
        begins_anew = not turns and not change.dropped_oldest
        if change.added:
            turns = (*turns, change.added)
        return replace(
            self,
            turns=turns,
            version=self.version + 1,
            created_at_s=self.created_at_s if self.version else at_s,
            used_at_s=at_s,
            title=_title(turns) if begins_anew else self.title,
            forgotten_turns=self.forgotten_turns + change.dropped_oldest,
        )

    def copy(self, ref: SessionRef, turns: Sequence[Turn], at_s: float) -> Session:
        """A new session, stored for the first time, that begins with ``turns`` of this one."""
        return Session(ref, self.system_prompt, at_s, at_s, tuple(turns), 1, _title(turns), self.forgotten_turns)


@dataclass(frozen=True, slots=True)
class SessionSummary:
    """A session in a list."""

    session_id: str
    title: str
    turns: int
    created_at_s: float
    used_at_s: float


@dataclass(frozen=True, slots=True)
class SessionPage:
    """Some sessions of an owner, the last used first; ``next_cursor`` asks for those after them, if there are any."""

    sessions: tuple[SessionSummary, ...]
    next_cursor: str | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to write to a session for a while.

    Attributes:
        holder: a random name of whoever has it.
        token: fencing token: larger than that of every earlier lease of the session. A write under an older token
            than the last writer's is refused (Kleppmann, "How to do distributed locking", 2016).
    """

    ref: SessionRef
    holder: str
    token: int


@dataclass(frozen=True, slots=True)
class OpenTurn:
    """A session as its lease was taken: ``None`` if there is none yet; and the system prompt that was set, if any."""

    lease: Lease
    session: Session | None
    system_prompt: str | None


def _kept(turns: Sequence[Turn], limits: SessionLimits) -> int:
    """How many of the newest turns are within the limits; the newest one always is."""
    kept = total_bytes = 0
    for turn in reversed(turns[-limits.max_turns :]):
        total_bytes += turn.size_bytes
        if total_bytes > limits.max_bytes:
            break
        kept += 1
    return max(kept, 1)


def _title(turns: Sequence[Turn]) -> str:
    """The first words that were said, on one line."""
    return " ".join(turns[0].user[: 4 * _TITLE_CHARACTERS].split())[:_TITLE_CHARACTERS] if turns else ""

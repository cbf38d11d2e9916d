"""Turns of a session. A turn is remembered only once it is complete."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from inferapi.application.inference import Answered, Inference
from inferapi.application.policy import SessionPolicy
from inferapi.application.sessions import new_session_id
from inferapi.application.turns import TurnGate
from inferapi.domain.chat import Message, Session, SessionRef, Turn
from inferapi.domain.errors import InvalidRequest
from inferapi.domain.generation import Chunk, Finish, Prompt, SamplingParams
from inferapi.domain.model import ModelRef
from inferapi.domain.ports import Clock


@dataclass(frozen=True, slots=True)
class ChatTurn:
    """What is said in which session.

    Attributes:
        session_id: without one a session starts.
        idempotency_key: the same question under the same key is one turn, however often it is asked.
        model: the current one, unless named.
    """

    owner: str
    session_id: str | None
    text: str
    sampling: SamplingParams
    idempotency_key: str | None = None
    model: ModelRef | None = None


@dataclass(frozen=True, slots=True)
class TurnStored:
    """The end of a turn: the session with the turn as its last. ``finish`` is none if it was answered earlier."""

    session: Session
    finish: Finish | None

    @property
    def turn(self) -> Turn:
        """The turn itself."""
        return self.session.turns[-1]


class Conversation:
    """Chat with memory."""

    def __init__(self, inference: Inference, turns: TurnGate, clock: Clock, policy: SessionPolicy) -> None:
        self._inference = inference
        self._turns = turns
        self._clock = clock
        self._policy = policy

    async def chat(self, asked: ChatTurn) -> AsyncGenerator[Chunk | TurnStored]:
        """Yield the answer in its session, then, when the turn is stored, ``TurnStored``.

        Closing the generator early stores nothing.

        Raises:
            InvalidRequest: the text is more than a session may hold, or the key was used for another question.
            SessionBusy: earlier turns of this session took too long.
            SessionUnreadable, SessionStoreUnavailable: there is no history to go on from.
            HistoryNotSaved: the turn is not stored.
            others: as ``Inference.infer``.
        """
        limits = self._policy.limits
        if len(asked.text.encode()) > limits.max_bytes:
            raise InvalidRequest(problem=f"text: a session holds at most {limits.max_bytes} bytes on this server")
        ref = SessionRef(asked.owner, asked.session_id or _session_id(asked))
        async with self._turns.turn(ref) as held:
            session = held.session or Session(ref, self._policy.system_prompt(held.system_prompt))
            earlier = _answered_earlier(session, asked)
            if earlier is not None:
                if earlier.turn.assistant:
                    yield Chunk(earlier.turn.assistant)
                yield earlier
                return
            messages = (*session.messages(), Message("user", asked.text))
            prompt = Prompt(messages=messages, drop_oldest_turns=True)
            answer = self._inference.infer(
                prompt, asked.sampling, owner=asked.owner, affinity=ref.session_id, model=asked.model
            )
            async with aclosing(answer) as items:
                async for item in items:
                    if isinstance(item, Chunk):
                        yield item
                    else:
                        change = session.appending(self._turn(asked, item), limits)
                        yield TurnStored(await held.commit(session, change), item.finish)

    def _turn(self, asked: ChatTurn, answered: Answered) -> Turn:
        usage = answered.finish.usage
        return Turn(
            turn_id=secrets.token_urlsafe(16),
            user=asked.text,
            assistant=answered.text,
            model=answered.model,
            created_at_s=self._clock.wall_s(),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            finish_reason=answered.finish.reason.value,
            idempotency_key=asked.idempotency_key,
        )


def _session_id(asked: ChatTurn) -> str:
    """Of a session to be made. A request that is repeated finds the session that it made the first time."""
    if asked.idempotency_key is None:
        return new_session_id()
    name = f"{asked.owner}\n{asked.idempotency_key}".encode()
    return hashlib.blake2b(name, digest_size=24, person=b"session").hexdigest()


def _answered_earlier(session: Session, asked: ChatTurn) -> TurnStored | None:
    """The turn that this request made when it came first, at the end of the session as it was then."""
    if asked.idempotency_key is None:
        return None
    for count, turn in enumerate(session.turns, start=1):
        if turn.idempotency_key == asked.idempotency_key:
            if turn.user != asked.text:
                raise InvalidRequest(problem="Idempotency-Key: it was used for another text in this session")
            return TurnStored(replace(session, turns=session.turns[:count]), None)
    return None

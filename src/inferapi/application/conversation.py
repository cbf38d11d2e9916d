"""Turns of a session. A turn is remembered only once it is complete."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from inferapi.application.inference import Answered, Inference
from inferapi.domain.chat import Message, Session, Turn
from inferapi.domain.generation import Chunk, Prompt, SamplingParams
from inferapi.domain.model import ModelRef
from inferapi.domain.ports import Clock, SessionStore


@dataclass(frozen=True, slots=True)
class TurnStored:
    """The end of a turn: the session with the turn in it."""

    session: Session
    answered: Answered


class Conversation:
    """Chat with memory.

    Args:
        default_system_prompt: for new sessions, until ``set_system_prompt`` says otherwise.
        turn_wait_s: how long a turn waits for an earlier one of the same session.
    """

    def __init__(
        self,
        inference: Inference,
        sessions: SessionStore,
        clock: Clock,
        *,
        default_system_prompt: str,
        turn_wait_s: float,
    ) -> None:
        self._inference = inference
        self._sessions = sessions
        self._clock = clock
        self._default_system_prompt = default_system_prompt
        self._turn_wait_s = turn_wait_s

    async def chat(
        self, session_id: str | None, text: str, sampling: SamplingParams, model: ModelRef | None = None
    ) -> AsyncGenerator[Chunk | TurnStored]:
        """Yield the answer to ``text`` in its session, then, when the turn is stored, ``TurnStored``.

        Without ``session_id`` a session starts, with an id that nobody can guess. Closing the generator early
        stores nothing.

        Raises:
            SessionBusy: an earlier turn of this session took too long.
            HistoryNotSaved, SessionStoreUnavailable: the turn is not stored.
            others: as ``Inference.infer``.
        """
        session_id = session_id or secrets.token_urlsafe(24)
        async with self._sessions.turn(session_id, wait_s=self._turn_wait_s):
            session = await self._sessions.get(session_id) or Session(session_id, await self._system_prompt())
            question = Message("user", text)
            prompt = Prompt(messages=(*session.messages(), question), drop_oldest_turns=True)
            async with aclosing(self._inference.infer(prompt, sampling, session_id, model)) as items:
                async for item in items:
                    if isinstance(item, Chunk):
                        yield item
                    else:
                        yield TurnStored(await self._sessions.append(session, self._turn(text, item)), item)

    async def set_system_prompt(self, prompt: str) -> None:
        """Give sessions that start from now on this system prompt; the others keep theirs."""
        await self._sessions.set_system_prompt(prompt)

    async def _system_prompt(self) -> str:
        stored = await self._sessions.system_prompt()
        return self._default_system_prompt if stored is None else stored

    def _turn(self, question: str, answered: Answered) -> Turn:
        usage = answered.finish.usage
        return Turn(
            turn_id=secrets.token_urlsafe(16),
            user=question,
            assistant=answered.text,
            model=answered.model,
            created_at_s=self._clock.wall_s(),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )

"""Responses: answers that can be fetched again, and gone on from."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field

from inferapi.application.answer_parts import Completed, Part, Started
from inferapi.application.answer_room import AnswerItem, within_window
from inferapi.application.completion import Completion
from inferapi.application.response_items import Item, messages_of, remembered
from inferapi.application.response_output import GrowingOutput, ItemChange
from inferapi.application.response_records import Response, decode_response, encode_asked, encode_response
from inferapi.application.sessions import Sessions
from inferapi.application.tool_choice import AUTO, ToolChoice
from inferapi.application.turns import TurnGate
from inferapi.domain.chat import Message, Session, SessionChange, SessionRef
from inferapi.domain.errors import HistoryNotSaved, InvalidRequest, ResponseNotFound, SessionNotFound, SessionUnreadable
from inferapi.domain.generation import Prompt, SamplingParams, Tool
from inferapi.domain.model import ModelRef
from inferapi.domain.ports import Clock

MOST_STORED_BYTES = 24 * 2**20
"""Of a response with its log-probabilities: as much as every store gives back."""

_RESPONSE_ID = re.compile(r"resp_[0-9a-f]{48}")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked for.

    Attributes:
        items: what was sent.
        instructions: a system message in front of everything; those of earlier responses are not carried along.
        previous_response_id: the stored response to go on from.
        has_limit: false where the client set none to the answer: then it has what the context window has room for, at
            most ``sampling.max_new_tokens``.
        stores: keep the response, for so long as a session is kept.
        told: what clients are told with the response, as the API words it: JSON that is kept as it is.
    """

    owner: str
    items: tuple[Item, ...]
    sampling: SamplingParams
    tool_choice: ToolChoice = AUTO
    instructions: str | None = None
    previous_response_id: str | None = None
    has_limit: bool = True
    stores: bool = True
    tools: tuple[Tool, ...] = ()
    parallel_tool_calls: bool = True
    model: ModelRef | None = None
    told: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Begun:
    """A model has taken the question on."""

    response_id: str
    created_at_s: float
    model: str
    told: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question with all that came before it. ``document`` is what is stored of it."""

    question: Question
    response_id: str
    created_at_s: float
    items: tuple[Item, ...]
    document: str
    messages: tuple[Message, ...]


class Responses:
    """Answers questions, and keeps the answers.

    A stored response is a session of its own with one turn: the question with everything that came before it, and the
    answer. So it can be gone on from any number of times, side by side, and needs no other response to be there still.
    Its sessions have an owner that no key can be, so that they are neither listed nor written as conversations.
    """

    def __init__(self, completion: Completion, sessions: Sessions, turns: TurnGate, clock: Clock) -> None:
        self._completion = completion
        self._sessions = sessions
        self._turns = turns
        self._clock = clock

    async def respond(self, question: Question) -> AsyncGenerator[Begun | ItemChange | Response]:
        """Yield ``Begun``, the output as it grows, then, when it is stored if it is to be, the ``Response``.

        Closing the generator early stops the work and stores nothing.

        Raises:
            ResponseNotFound: there is no such previous response.
            InvalidRequest: with what came before, it is more than a session may hold; or it makes no sense.
            SessionUnreadable, SessionStoreUnavailable: there is no history to go on from, or nothing can be stored.
            HistoryNotSaved: the response is not stored.
            others: as ``Completion.complete``.
        """
        asked = await self._asked(question)
        if not question.stores:
            async with aclosing(self._answer(asked)) as changes:
                async for change in changes:
                    yield change
            return
        ref = _ref(question.owner, asked.response_id)
        async with self._turns.turn(ref) as held, aclosing(self._answer(asked)) as changes:
            async for change in changes:
                if isinstance(change, Response):
                    turn = encode_response(change, asked.document)
                    if turn.size_bytes > MOST_STORED_BYTES:
                        raise HistoryNotSaved(problem=f"the response has more than {MOST_STORED_BYTES} bytes")
                    await held.commit(Session(ref, ""), SessionChange(turn))
                yield change

    async def read(self, owner: str, response_id: str) -> Response:
        """A stored response.

        Raises:
            ResponseNotFound: it is unknown, was deleted or expired, or is somebody else's.
            SessionUnreadable, SessionStoreUnavailable: it cannot be read, at all or now.
        """
        with _response_sought():
            session = await self._sessions.read(_ref(owner, response_id))
        if len(session.turns) != 1:
            raise SessionUnreadable(problem=f"a response has one turn, and it has {len(session.turns)}")
        return decode_response(session.turns[0])

    async def delete(self, owner: str, response_id: str) -> None:
        """Forget a response; one that is being made is not stored. Responses that went on from it stay.

        Raises:
            ResponseNotFound, SessionStoreUnavailable: as ``read``.
        """
        with _response_sought():
            await self._sessions.delete(_ref(owner, response_id))

    async def _asked(self, question: Question) -> _Asked:
        items = question.items
        if question.previous_response_id is not None:
            try:
                before = await self.read(question.owner, question.previous_response_id)
            except ResponseNotFound as error:
                raise ResponseNotFound(param="previous_response_id") from error
            items = (*before.asked, *remembered(before.output), *items)
        messages = messages_of(question.instructions, items)
        document, most_bytes = encode_asked(items) if question.stores else "", self._sessions.limits.max_bytes
        if len(document.encode()) > most_bytes:
            problem = f"input: with what came before it is more than {most_bytes} bytes, the most that is stored here"
            raise InvalidRequest(problem=problem)
        return _Asked(question, new_response_id(), self._clock.wall_s(), items, document, messages)

    async def _answer(self, asked: _Asked) -> AsyncGenerator[Begun | ItemChange | Response]:
        question = asked.question
        prompt = Prompt(messages=asked.messages, tools=question.tools)

        def answer(sampling: SamplingParams) -> AsyncGenerator[AnswerItem]:
            return self._completion.complete(
                prompt,
                sampling,
                tool_choice=question.tool_choice,
                parallel_tool_calls=question.parallel_tool_calls,
                owner=question.owner,
                model=question.model,
            )

        sampling = question.sampling
        items = answer(sampling) if question.has_limit else within_window(answer, sampling)
        output, model = GrowingOutput(), ""
        async with aclosing(items):
            async for item in items:
                if isinstance(item, Started):
                    model = item.model
                    yield Begun(asked.response_id, asked.created_at_s, model, question.told)
                elif isinstance(item, Part):
                    for change in output.add(item):
                        yield change
                else:
                    yield self._response(asked, model, output, item)

    def _response(self, asked: _Asked, model: str, output: GrowingOutput, completed: Completed) -> Response:
        if output.finish_reason is None:
            raise ValueError("the answer has no end")
        return Response(
            response_id=asked.response_id,
            created_at_s=asked.created_at_s,
            completed_at_s=self._clock.wall_s(),
            model=model,
            asked=asked.items,
            output=output.items,
            finish_reason=output.finish_reason,
            usage=completed.usage,
            told=asked.question.told,
        )


def new_response_id() -> str:
    """An id that nobody can guess: 192 random bits."""
    return f"resp_{secrets.token_hex(24)}"


@contextmanager
def _response_sought() -> Iterator[None]:
    """The session that is not there was a response's."""
    try:
        yield
    except SessionNotFound as error:
        raise ResponseNotFound from error


def _ref(owner: str, response_id: str) -> SessionRef:
    """The session that holds a response. Ids of keys have no slash.

    Raises:
        ResponseNotFound: no response can have this id.
    """
    if not _RESPONSE_ID.fullmatch(response_id):
        raise ResponseNotFound
    return SessionRef(f"responses/{owner}", response_id)

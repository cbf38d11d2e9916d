"""``POST /chat``: conversations that the server remembers."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, Field, StringConstraints
from starlette.responses import Response

from inferapi.api.auth import Access, owner_of
from inferapi.api.json_route import JsonRoute
from inferapi.api.schema import MAX_TOKEN_COUNT, SamplingBody, SamplingPolicy, SessionId, Text, details
from inferapi.api.sessions import HistoryMessage, history
from inferapi.api.sse import respond
from inferapi.application.conversation import ChatTurn, Conversation, TurnStored
from inferapi.domain.generation import Chunk

IdempotencyKey = Annotated[
    Annotated[str, StringConstraints(pattern=r"^[!-~]{1,255}$")] | None,
    Header(description="Repeated under the same key, a turn is one turn: the first answer comes again."),
]


class ChatBody(SamplingBody):
    """One turn."""

    text: Text
    session_id: SessionId | None = Field(None, description="Without one, a session starts.")
    max_new_tokens: int = Field(512, ge=1, le=MAX_TOKEN_COUNT)


class ChatReply(BaseModel):
    """The answer, and the session it is part of."""

    session_id: str
    result: str
    full_history: list[HistoryMessage]


def chat_router(conversation: Conversation, policy: SamplingPolicy, access: Access) -> APIRouter:
    """The route, on its use case."""
    router = APIRouter(tags=["chat"], route_class=JsonRoute, dependencies=[access.needs("infer")])

    @router.post("/chat", response_model=ChatReply)
    async def chat(body: ChatBody, request: Request, idempotency_key: IdempotencyKey = None) -> Response:
        """Answer in a session. The answer holds the session's id and whole history, this turn included."""
        asked = ChatTurn(
            owner=owner_of(request),
            session_id=body.session_id,
            text=body.text,
            sampling=body.sampling(body.max_new_tokens, policy),
            idempotency_key=idempotency_key,
            model=body.ref(),
        )
        return await respond(request, conversation.chat(asked), lambda item: _encode(item, body), stream=body.stream)

    return router


def _encode(item: Chunk | TurnStored, body: ChatBody) -> dict[str, Any]:
    if isinstance(item, Chunk):
        return {"delta": item.text}
    session = item.session
    reply = {
        "session_id": session.ref.session_id,
        "result": item.turn.assistant,
        "full_history": history(session),
    }
    return reply | {"details": _details(item)} if body.details else reply


def _details(item: TurnStored) -> dict[str, Any]:
    turn = item.turn
    if item.finish is not None:
        told = details(turn.model, item.finish)
    else:  # what is known of an answer given earlier
        usage = {
            "prompt_tokens": turn.prompt_tokens,
            "completion_tokens": turn.completion_tokens,
            "total_tokens": turn.prompt_tokens + turn.completion_tokens,
        }
        told = {"finish_reason": turn.finish_reason, "usage": usage, "timings": None, "model": turn.model}
    return told | {"turn_id": turn.turn_id, "replayed": item.finish is None}

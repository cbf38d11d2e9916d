"""``POST /chat`` and ``POST /system_prompt``: conversations that the server remembers."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, StringConstraints
from starlette.responses import Response

from inferapi.api.json_route import JsonRoute
from inferapi.api.schema import MAX_TOKEN_COUNT, Body, SamplingBody, SamplingPolicy, SessionId, Text, details
from inferapi.api.sse import respond
from inferapi.application.conversation import Conversation, TurnStored
from inferapi.domain.generation import Chunk


class ChatBody(SamplingBody):
    """One turn."""

    text: Text
    session_id: SessionId | None = Field(None, description="Without one, a session starts.")
    max_new_tokens: int = Field(512, ge=1, le=MAX_TOKEN_COUNT)


class SystemPromptBody(Body):
    """What new sessions start with."""

    prompt: Annotated[str, StringConstraints(max_length=65_536)]


class HistoryMessage(BaseModel):
    """One message of a session."""

    role: str
    content: str


class ChatReply(BaseModel):
    """The answer, and the session it is part of."""

    session_id: str
    result: str
    full_history: list[HistoryMessage]


class SystemPromptReply(BaseModel):
    """What happened."""

    message: str


def chat_router(conversation: Conversation, policy: SamplingPolicy) -> APIRouter:
    """The routes, on their use case."""
    router = APIRouter(tags=["chat"], route_class=JsonRoute)

    @router.post("/chat", response_model=ChatReply)
    async def chat(body: ChatBody, request: Request) -> Response:
        """Answer in a session. The answer holds the session's id and whole history, this turn included."""
        sampling = body.sampling(body.max_new_tokens, policy)
        items = conversation.chat(body.session_id, body.text, sampling, body.ref())
        return await respond(request, items, lambda item: _encode(item, body), stream=body.stream)

    @router.post("/system_prompt")
    async def system_prompt(body: SystemPromptBody) -> SystemPromptReply:
        """Set the system prompt of sessions that start from now on."""
        await conversation.set_system_prompt(body.prompt)
        return SystemPromptReply(message="System prompt updated (will affect new sessions only)")

    return router


def _encode(item: Chunk | TurnStored, body: ChatBody) -> dict[str, Any]:
    if isinstance(item, Chunk):
        return {"delta": item.text}
    session = item.session
    reply: dict[str, Any] = {
        "session_id": session.session_id,
        "result": session.turns[-1].assistant,
        "full_history": [{"role": message.role, "content": message.content} for message in session.messages()],
    }
    return reply | {"details": details(item.answered)} if body.details else reply

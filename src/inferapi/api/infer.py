"""``POST /infer``: raw continuation of a text."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from inferapi.api.auth import Access, owner_of
from inferapi.api.json_route import JsonRoute
from inferapi.api.schema import MAX_TOKEN_COUNT, SamplingBody, SamplingPolicy, SessionId, Text, details
from inferapi.api.sse import respond
from inferapi.application.inference import Answered, Inference
from inferapi.domain.chat import Message
from inferapi.domain.generation import Chunk, Prompt


class InferBody(SamplingBody):
    """What to continue."""

    text: Text
    max_new_tokens: int = Field(100, ge=1, le=MAX_TOKEN_COUNT)
    session_id: SessionId | None = Field(None, description="A label; adds no history.")
    chat: bool = Field(False, description="Put the text into the model's chat template, as one user turn.")

    def prompt(self) -> Prompt:
        """The text as it is, or as a turn."""
        return Prompt(messages=(Message("user", self.text),)) if self.chat else Prompt(text=self.text)


class InferReply(BaseModel):
    """The continuation alone, beside what it continues."""

    input: str
    result: str


def infer_router(inference: Inference, policy: SamplingPolicy, access: Access) -> APIRouter:
    """The route, on its use case."""
    router = APIRouter(tags=["infer"], route_class=JsonRoute, dependencies=[access.needs("infer")])

    @router.post("/infer", response_model=InferReply)
    async def infer(body: InferBody, request: Request) -> Response:
        """Continue a text. Answers ``{"input", "result"}``; ``result`` is the continuation alone."""
        sampling = body.sampling(body.max_new_tokens, policy)
        items = inference.infer(
            body.prompt(), sampling, owner=owner_of(request), affinity=body.session_id, model=body.ref()
        )
        return await respond(request, items, lambda item: _encode(item, body), stream=body.stream)

    return router


def _encode(item: Chunk | Answered, body: InferBody) -> dict[str, Any]:
    if isinstance(item, Chunk):
        return {"delta": item.text}
    reply: dict[str, Any] = {"input": body.text, "result": item.text}
    return reply | {"details": details(item.model, item.finish)} if body.details else reply

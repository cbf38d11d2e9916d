"""``/v1/responses``: answers that are kept, told again, and gone on from."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Body, Query, Request
from fastapi.openapi.models import Example
from starlette.responses import Response as HttpResponse

from inferapi.api.auth import Access, owner_of
from inferapi.api.disconnect import until_disconnect
from inferapi.api.json_reply import json_reply
from inferapi.api.json_route import JsonRoute
from inferapi.api.openai.response_events import ResponseEvents
from inferapi.api.openai.response_objects import item_object, response_object
from inferapi.api.openai.response_replies import (
    RESPONSE_OR_EVENTS,
    STORED_ERRORS,
    DeletedReply,
    ItemsReply,
    ResponseReply,
)
from inferapi.api.openai.responses_schema import LOGPROBS, ResponseBody
from inferapi.api.openai.schema import OpenAiPolicy, refused
from inferapi.api.sse import EventStream
from inferapi.application.response_output import ItemChange
from inferapi.application.response_records import Response
from inferapi.application.responses import Begun, Responses
from inferapi.domain.errors import InvalidRequest

_MOST_ON_A_PAGE = 100
_MOST_NAMED = 64
_FORMAT, _FORMAT_HERE = "response_format", "text.format"
_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_EXAMPLES: dict[str, Example] = {
    "question": {"value": {"model": _MODEL, "instructions": "Be brief.", "input": "What is the capital of France?"}},
    "stream": {"value": {"model": _MODEL, "input": "Tell me a story.", "max_output_tokens": 200, "stream": True}},
    "items": {
        "value": {
            "model": _MODEL,
            "input": [
                {"role": "user", "content": "How is the weather in Paris?"},
                {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city":"Paris"}'},
                {"type": "function_call_output", "call_id": "call_1", "output": "It rains."},
            ],
            "store": False,
        }
    },
    "json": {
        "value": {
            "model": _MODEL,
            "input": "Ann is 42 years old.",
            "text": {"format": {"type": "json_object"}},
        }
    },
}

T = TypeVar("T")


def responses_router(responses: Responses, policy: OpenAiPolicy, access: Access) -> APIRouter:
    """The routes, on their use case."""
    router = APIRouter(prefix="/v1", tags=["openai"], route_class=JsonRoute, dependencies=[access.needs("infer")])

    @router.post("/responses", response_model=ResponseReply, responses=RESPONSE_OR_EVENTS)
    async def create(body: Annotated[ResponseBody, Body(openapi_examples=_EXAMPLES)], request: Request) -> HttpResponse:
        """Answer, and keep the answer unless `store` is false; `previous_response_id` goes on from a stored one.

        With `stream`, typed events come, numbered from 0: `response.created` first, and last `response.completed`,
        `response.incomplete` or `response.failed`; there is no `[DONE]`. What is not supported is refused with 400 and
        named in `param`.
        """
        items = _in_terms_of_here(responses.respond(body.question(owner_of(request), policy)))
        if body.stream:
            return await EventStream.start(request, items, ResponseEvents())
        return json_reply(response_object(await until_disconnect(request, _last(items))))

    @router.get("/responses/{response_id}", response_model=ResponseReply, responses=STORED_ERRORS)
    async def read(response_id: str, request: Request) -> HttpResponse:
        """A stored response, as it was told when it was made."""
        _refuse_unknown(request, {"stream": "false", "include_obfuscation": "false"})
        return json_reply(response_object(await responses.read(owner_of(request), response_id)))

    @router.delete("/responses/{response_id}", response_model=DeletedReply, responses=STORED_ERRORS)
    async def delete(response_id: str, request: Request) -> HttpResponse:
        """Forget a response. Those that went on from it stay; one that is still being made is not stored."""
        await responses.delete(owner_of(request), response_id)
        return json_reply({"id": response_id, "object": "response", "deleted": True})

    @router.get("/responses/{response_id}/input_items", response_model=ItemsReply, responses=STORED_ERRORS)
    async def input_items(
        response_id: str,
        request: Request,
        limit: Annotated[int, Query(ge=1, le=_MOST_ON_A_PAGE, description="At most so many.")] = 20,
        order: Annotated[Literal["asc", "desc"], Query(description="desc: the latest first.")] = "desc",
        after: Annotated[str | None, Query(max_length=128, description="The last_id of the page before.")] = None,
    ) -> HttpResponse:
        """What a response answers: the items that were sent with it, and all before them."""
        _refuse_unknown(request, {"limit": None, "order": None, "after": None})
        response = await responses.read(owner_of(request), response_id)
        items = [*response.asked] if order == "asc" else [*reversed(response.asked)]
        if after is not None:
            places = [place for place, item in enumerate(items, start=1) if item.item_id == after]
            if not places:
                raise refused("after", "the response has no such item")
            items = items[places[0] :]
        told = [item_object(item) for item in items[:limit]]
        return json_reply(
            {
                "object": "list",
                "data": told,
                "first_id": told[0]["id"] if told else None,
                "last_id": told[-1]["id"] if told else None,
                "has_more": len(items) > limit,
            }
        )

    return router


async def _last(items: AsyncGenerator[Begun | ItemChange | Response]) -> Response:
    """The response, which comes last."""
    async with aclosing(items):
        async for item in items:
            if isinstance(item, Response):
                return item
    raise RuntimeError("a response has no end")


async def _in_terms_of_here(items: AsyncGenerator[T]) -> AsyncGenerator[T]:
    """The items, and what is wrong with the format under the name that it has here."""
    async with aclosing(items):
        try:
            async for item in items:
                yield item
        except InvalidRequest as error:
            name, _, problem = error.message.partition(": ")
            if name != _FORMAT:
                raise
            raise refused(_FORMAT_HERE, problem.replace(_FORMAT, _FORMAT_HERE)) from error


def _refuse_unknown(request: Request, known: dict[str, str | None]) -> None:
    """Refuse what a query asks for and nobody here answers; ``None`` leaves the value to others.

    Raises:
        InvalidRequest: it names a parameter that is not supported, or gives it a value that is not.
    """
    for name, value in request.query_params.multi_items():
        if name in {"include", "include[]"} and value == LOGPROBS:
            continue  # what was asked for when the response was made is told anyhow
        if name not in known:
            is_told = name.isascii() and name.isidentifier() and len(name) <= _MOST_NAMED
            raise refused(name if is_told else "query", "there is no such parameter")
        if known[name] is not None and value != known[name]:
            raise refused(name, "this is not supported: a stored response is told whole, and at once")

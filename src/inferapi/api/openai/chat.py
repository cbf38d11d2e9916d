"""``POST /v1/chat/completions``: the answer to a conversation that the client keeps."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Body, Request
from fastapi.openapi.models import Example
from starlette.responses import Response

from inferapi.api.auth import Access, owner_of
from inferapi.api.json_route import JsonRoute
from inferapi.api.openai.answers import Head, answered
from inferapi.api.openai.chat_answers import ChatEvents, chat_reply
from inferapi.api.openai.chat_schema import ChatCompletionBody
from inferapi.api.openai.logprobs import encoded
from inferapi.api.openai.replies import ERRORS, ChatCompletion
from inferapi.api.openai.schema import OpenAiPolicy
from inferapi.api.openai.strictness import accepted
from inferapi.api.sse import described
from inferapi.application.answer_room import AnswerItem, within_window
from inferapi.application.completion import Completion
from inferapi.domain.generation import SamplingParams

_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_QUESTION = {"role": "user", "content": "What is the capital of France?"}
_PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
_EXAMPLES: dict[str, Example] = {
    "question": {"value": {"model": _MODEL, "messages": [_QUESTION]}},
    "stream": {
        "value": {
            "model": _MODEL,
            "messages": [{"role": "system", "content": "Be brief."}, _QUESTION],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    },
    "json": {
        "value": {
            "model": _MODEL,
            "messages": [{"role": "user", "content": "Ann is 42 years old."}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": _PERSON}},
        }
    },
    "tools": {
        "value": {
            "model": _MODEL,
            "messages": [{"role": "user", "content": "How is the weather in Paris?"}],
            "tools": [
                {
                    "type": "function",
                    "function": {
                        "name": "weather",
                        "description": "The weather in a city.",
                        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
                    },
                }
            ],
            "tool_choice": "required",
        }
    },
}
_CHUNK = '"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"m"'
_STREAM = (
    f'data: {{{_CHUNK},"choices":[{{"index":0,"delta":{{"content":"Paris"}},"logprobs":null,"finish_reason":null}}]}}'
    "\n\ndata: [DONE]\n\n"
)


def chat_completions_router(completion: Completion, policy: OpenAiPolicy, access: Access) -> APIRouter:
    """The route, on its use case."""
    router = APIRouter(prefix="/v1", tags=["openai"], route_class=JsonRoute, dependencies=[access.needs("infer")])

    @router.post("/chat/completions", response_model=ChatCompletion, responses=described(_STREAM) | ERRORS)
    async def create(
        body: Annotated[ChatCompletionBody, Body(openapi_examples=_EXAMPLES)], request: Request
    ) -> Response:
        """Answer a conversation, as OpenAI's chat completions do.

        With `stream`, `chat.completion.chunk` events come until `data: [DONE]`; an error on the way is an event
        `{"error"}`, and then there is no `[DONE]`. What is not supported is refused with 400 and named in `param`.
        """
        head = Head.new("chatcmpl", accepted(body, lenient=policy.lenient_params))
        ref, prompt, tool_choice, sampling = body.ref(), body.prompt(), body.choice(), body.chat_sampling(policy)

        def complete(sampling: SamplingParams) -> AsyncGenerator[AnswerItem]:
            return completion.complete(
                prompt,
                sampling,
                n=body.choices,
                tool_choice=tool_choice,
                parallel_tool_calls=body.parallel_tool_calls is not False,
                owner=owner_of(request),
                model=ref,
                parses=True,
            )

        items = within_window(complete, sampling) if body.limit_tokens is None else complete(sampling)
        has_logprobs = bool(body.logprobs)
        return await answered(
            request,
            items,
            ChatEvents(head, includes_usage=body.includes_usage, has_logprobs=has_logprobs),
            lambda answer: chat_reply(answer, head, has_logprobs=has_logprobs),
            stream=bool(body.stream),
            encode_tokens=encoded,
        )

    return router

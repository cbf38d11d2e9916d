"""``POST /v1/completions``: raw continuations of texts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Request
from fastapi.openapi.models import Example
from starlette.responses import Response

from inferapi.api.auth import Access, owner_of
from inferapi.api.json_route import JsonRoute
from inferapi.api.openai.answers import Head, answered
from inferapi.api.openai.replies import ERRORS, TextCompletion
from inferapi.api.openai.schema import OpenAiPolicy
from inferapi.api.openai.strictness import accepted
from inferapi.api.openai.text_answers import TextEvents, text_reply
from inferapi.api.openai.text_schema import TextBody
from inferapi.api.sse import described
from inferapi.application.completion import Completion
from inferapi.application.several_prompts import several

_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
_EXAMPLES: dict[str, Example] = {
    "text": {"value": {"model": _MODEL, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}},
    "likeliest": {"value": {"model": _MODEL, "prompt": "2 + 2 =", "max_tokens": 1, "logprobs": 5}},
    "several": {"value": {"model": _MODEL, "prompt": ["One, two,", "A, B,"], "max_tokens": 8, "n": 2}},
}
_STREAM = (
    'data: {"id":"cmpl-1","object":"text_completion","created":1700000000,"model":"m","choices":[{"index":0,'
    '"text":" Paris","logprobs":null,"finish_reason":null}]}\n\ndata: [DONE]\n\n'
)


def completions_router(completion: Completion, policy: OpenAiPolicy, access: Access) -> APIRouter:
    """The route, on its use case."""
    router = APIRouter(prefix="/v1", tags=["openai"], route_class=JsonRoute, dependencies=[access.needs("infer")])

    @router.post("/completions", response_model=TextCompletion, responses=described(_STREAM) | ERRORS)
    async def create(body: Annotated[TextBody, Body(openapi_examples=_EXAMPLES)], request: Request) -> Response:
        """Continue texts as they are, as OpenAI's completions do; the prompts are answered side by side.

        Choice `i` of prompt `p` has the index `p * n + i`. With `stream`, events come until `data: [DONE]`.
        """
        head = Head.new("cmpl", accepted(body, lenient=policy.lenient_params))
        ref, sampling = body.ref(), body.text_sampling(policy)
        answers = [
            completion.complete(prompt, sampling, n=body.choices, owner=owner_of(request), model=ref, parses=False)
            for prompt in body.prompts()
        ]
        return await answered(
            request,
            answers[0] if len(answers) == 1 else several(answers, choices_each=body.choices),
            TextEvents(head, includes_usage=body.includes_usage, top=body.logprobs),
            lambda answer: text_reply(answer, head, top=body.logprobs),
            stream=bool(body.stream),
        )

    return router

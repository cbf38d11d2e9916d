"""``POST /v1/embeddings``: texts become vectors."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Body, Request
from fastapi.openapi.models import Example
from pydantic import BeforeValidator, Field
from starlette.responses import Response

from inferapi.api.auth import Access, owner_of
from inferapi.api.disconnect import until_disconnect
from inferapi.api.json_reply import JsonReply
from inferapi.api.json_route import JsonRoute
from inferapi.api.openai.replies import ERRORS, EmbeddingsReply
from inferapi.api.openai.schema import OpenAiPolicy
from inferapi.api.openai.strictness import EMBEDDING, OpenAiBody, accepted
from inferapi.api.openai.text_schema import PromptText, as_texts
from inferapi.api.schema import MAX_TOKEN_COUNT, ModelName
from inferapi.application.embedding import Embedded, Embedding
from inferapi.domain.model import ModelRef

MAX_INPUTS = 2048
_AT_ONCE = 32  # vectors that are encoded before others have their turn on the event loop
_EXAMPLES: dict[str, Example] = {
    "text": {"value": {"model": "HuggingFaceTB/SmolLM2-135M-Instruct", "input": "A cat sat on the mat."}},
    "texts": {
        "value": {
            "model": "HuggingFaceTB/SmolLM2-135M-Instruct",
            "input": ["A cat sat on the mat.", "The stock market fell."],
            "encoding_format": "base64",
        }
    },
}

_Texts = Annotated[list[PromptText], Field(fail_fast=True, min_length=1, max_length=MAX_INPUTS)]


class EmbeddingsBody(OpenAiBody):
    """What to embed."""

    tolerated = EMBEDDING

    model: ModelName = Field(description="Which model embeds; it is loaded if need be.")
    input: Annotated[_Texts, BeforeValidator(as_texts, json_schema_input_type=PromptText | _Texts)]
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="Numbers, or base64 of their little-endian float32. Default: float."
    )
    dimensions: int | None = Field(
        None, ge=1, le=MAX_TOKEN_COUNT, description="Vectors are not shortened: only what the model has."
    )


def embeddings_router(embedding: Embedding, policy: OpenAiPolicy, access: Access) -> APIRouter:
    """The route, on its use case."""
    router = APIRouter(prefix="/v1", tags=["openai"], route_class=JsonRoute, dependencies=[access.needs("infer")])

    @router.post("/embeddings", response_model=EmbeddingsReply, responses=ERRORS)
    async def create(body: Annotated[EmbeddingsBody, Body(openapi_examples=_EXAMPLES)], request: Request) -> Response:
        """A vector of length 1 for each text, in order. Models made for it pool as they say, others by the mean."""
        warnings = accepted(body, lenient=policy.lenient_params)
        return await until_disconnect(request, _answer(embedding, body, owner_of(request), warnings))

    return router


async def _answer(embedding: Embedding, body: EmbeddingsBody, owner: str, warnings: tuple[str, ...]) -> Response:
    model = ModelRef.parse(body.model)
    embedded = await embedding.embed(body.input, owner=owner, model=model, dimensions=body.dimensions)
    encode: Callable[[Sequence[float]], Any] = _base64 if body.encoding_format == "base64" else tuple
    return JsonReply(await _encoded(embedded, encode, warnings))


async def _encoded(
    embedded: Embedded, encode: Callable[[Sequence[float]], Any], warnings: tuple[str, ...]
) -> list[bytes]:
    """The reply in JSON, in pieces, some vectors at a time: thousands of them are millions of numbers."""
    encoder = msgspec.json.Encoder()
    pieces = [b'{"object":"list","data":[']
    for index, vector in enumerate(embedded.embeddings.vectors):
        pieces.append(b"," if index else b"")
        pieces.append(encoder.encode({"object": "embedding", "index": index, "embedding": encode(vector)}))
        if index % _AT_ONCE == _AT_ONCE - 1:
            await asyncio.sleep(0)
    tokens = embedded.embeddings.prompt_tokens
    rest: dict[str, Any] = {
        "model": embedded.model,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    if warnings:
        rest["warnings"] = warnings
    return [*pieces, b"],", encoder.encode(rest)[1:]]


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")

"""The HTTP application: routers, middleware and error handlers put together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from inferapi import __version__
from inferapi.api.at_end import AtEnd
from inferapi.api.auth import Access
from inferapi.api.chat import chat_router
from inferapi.api.error_handlers import PROBLEMS, add_error_handlers
from inferapi.api.health import health_router
from inferapi.api.infer import infer_router
from inferapi.api.metrics import metrics_router
from inferapi.api.middleware import BodyGate, RequestIds
from inferapi.api.models import models_router
from inferapi.api.openai.chat import chat_completions_router
from inferapi.api.openai.completions import completions_router
from inferapi.api.openai.embeddings import embeddings_router
from inferapi.api.openai.models import model_list_router
from inferapi.api.openai.responses import responses_router
from inferapi.api.openai.schema import OpenAiPolicy
from inferapi.api.origins import add_origin_checks
from inferapi.api.schema import SamplingPolicy
from inferapi.api.sessions import IMPORT_PATH, export_bytes, sessions_router, system_prompt_router
from inferapi.api.sse import described
from inferapi.api.status import status_router
from inferapi.application.catalog import Catalog
from inferapi.application.completion import Completion
from inferapi.application.conversation import Conversation
from inferapi.application.embedding import Embedding
from inferapi.application.inference import Inference
from inferapi.application.lifecycle import ModelLifecycle
from inferapi.application.responses import Responses
from inferapi.application.sessions import Sessions
from inferapi.domain.telemetry import SILENT, Metrics
from inferapi.domain.tracing import Tracing, Untraced

_STREAM = 'data: {"delta":"Hello"}\n\ndata: {"result":"Hello"}\n\ndata: [DONE]\n\n'
# FastAPI's own spans and logs hold paths, queries and the texts of exceptions, which clients wrote in part.
_NO_TELEMETRY = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}


@dataclass(frozen=True, slots=True)
class OpenAiUseCases:
    """What the routes under ``/v1`` call."""

    completion: Completion
    responses: Responses
    embedding: Embedding
    catalog: Catalog


def create_app(
    lifecycle: ModelLifecycle,
    inference: Inference,
    conversation: Conversation,
    sessions: Sessions,
    openai: OpenAiUseCases,
    *,
    access: Access,
    sampling: SamplingPolicy,
    openai_policy: OpenAiPolicy,
    max_body_bytes: int,
    receive_timeout_s: float,
    stream_write_timeout_s: float,
    metrics: Metrics = SILENT,
    tracing: Tracing | None = None,
    cors_origins: Sequence[str] = (),
    trusted_hosts: Sequence[str] = (),
) -> FastAPI:
    """The ASGI app.

    Its lifespan starts the lifecycle and ends it, with every engine, then lets go of the session store.
    """
    tracing = tracing or Untraced()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await lifecycle.start()
        try:
            yield
        finally:
            await lifecycle.aclose()
            await sessions.aclose()
            await tracing.aclose()

    telemetry: Any = _NO_TELEMETRY  # versions without it keep what they do not know
    app = FastAPI(title="inferapi", version=__version__, lifespan=lifespan, redoc_url=None, telemetry=telemetry)
    # For a server that can do it before it stops to listen, and for one that is told not to wait.
    app.state.drain, app.state.abort = lifecycle.drain, lifecycle.abort
    app.state.stream_write_timeout_s = stream_write_timeout_s
    app.state.metrics = metrics
    native = (
        models_router(lifecycle, access),
        status_router(lifecycle, access),
        metrics_router(lifecycle, metrics, access),
        sessions_router(sessions, access),
        system_prompt_router(sessions, access),
        health_router(lifecycle, sessions),
    )
    streaming = infer_router(inference, sampling, access), chat_router(conversation, sampling, access)
    for router in native:
        app.include_router(router, responses=PROBLEMS)
    for router in streaming:
        app.include_router(router, responses=described(_STREAM) | PROBLEMS)
    for router in (
        model_list_router(openai.catalog, access),
        chat_completions_router(openai.completion, openai_policy, access),
        completions_router(openai.completion, openai_policy, access),
        responses_router(openai.responses, openai_policy, access),
        embeddings_router(openai.embedding, openai_policy, access),
    ):
        app.include_router(router)
    add_error_handlers(app)
    app.add_middleware(AtEnd)  # what is added later is around it
    larger = {IMPORT_PATH: export_bytes(sessions.limits)}  # what was exported can be imported
    app.add_middleware(BodyGate, max_body_bytes=max_body_bytes, receive_timeout_s=receive_timeout_s, larger=larger)
    add_origin_checks(app, cors_origins=cors_origins, trusted_hosts=trusted_hosts)
    app.add_middleware(RequestIds, tracing=tracing)
    return app

"""The HTTP application: routers, middleware and error handlers put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from inferapi import __version__
from inferapi.api.auth import Access
from inferapi.api.chat import chat_router
from inferapi.api.errors import add_error_handlers
from inferapi.api.health import health_router
from inferapi.api.infer import infer_router
from inferapi.api.middleware import BodyGate, RequestIds
from inferapi.api.models import models_router
from inferapi.api.schema import SamplingPolicy
from inferapi.api.sessions import IMPORT_PATH, export_bytes, sessions_router, system_prompt_router
from inferapi.api.status import status_router
from inferapi.application.conversation import Conversation
from inferapi.application.inference import Inference
from inferapi.application.lifecycle import ModelLifecycle
from inferapi.application.sessions import Sessions


def create_app(
    lifecycle: ModelLifecycle,
    inference: Inference,
    conversation: Conversation,
    sessions: Sessions,
    *,
    access: Access,
    sampling: SamplingPolicy,
    max_body_bytes: int,
) -> FastAPI:
    """The ASGI app.

    Its lifespan starts the lifecycle and ends it, with every engine, then lets go of the session store.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await lifecycle.start()
        try:
            yield
        finally:
            await lifecycle.aclose()
            await sessions.aclose()

    app = FastAPI(title="inferapi", version=__version__, lifespan=lifespan, redoc_url=None)
    # For a server that can do it before it stops to listen, and for one that is told not to wait.
    app.state.drain, app.state.abort = lifecycle.drain, lifecycle.abort
    app.include_router(models_router(lifecycle, access))
    app.include_router(status_router(lifecycle, access))
    app.include_router(infer_router(inference, sampling, access))
    app.include_router(chat_router(conversation, sampling, access))
    app.include_router(sessions_router(sessions, access))
    app.include_router(system_prompt_router(sessions, access))
    app.include_router(health_router(lifecycle, sessions))
    add_error_handlers(app)
    larger = {IMPORT_PATH: export_bytes(sessions.limits)}  # what was exported can be imported
    app.add_middleware(BodyGate, max_body_bytes=max_body_bytes, larger=larger)
    app.add_middleware(RequestIds)
    return app

"""Is it alive, is it ready: for orchestrators. Neither wakes a model nor needs another service."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from starlette.responses import JSONResponse

from inferapi.application.lifecycle import ModelLifecycle
from inferapi.application.sessions import Sessions
from inferapi.domain.errors import SessionStoreUnavailable

_PATIENCE_S = 0.25  # with the session store: a probe has little


def health_router(lifecycle: ModelLifecycle, sessions: Sessions) -> APIRouter:
    """The routes, on their use case."""
    router = APIRouter(tags=["health"], prefix="/health")

    @router.get("/live")
    async def live() -> dict[str, str]:
        """200 as long as the event loop turns."""
        return {"status": "live"}

    @router.get("/ready")
    async def ready() -> JSONResponse:
        """200 when requests can be served: not before the model named at start is loaded, not while draining.

        ``degraded`` while the session store is away: chats have to wait, everything else works.
        """
        reason = lifecycle.unready_reason
        if reason is not None:
            return JSONResponse({"status": reason}, 503, {"Retry-After": "5"})
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await sessions.ping()
        except (SessionStoreUnavailable, TimeoutError):
            return JSONResponse({"status": "degraded"})
        return JSONResponse({"status": "ready"})

    return router

"""Is it alive, is it ready: for orchestrators. Neither wakes a model nor needs another service."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import JSONResponse

from inferapi.application.lifecycle import ModelLifecycle


def health_router(lifecycle: ModelLifecycle) -> APIRouter:
    """The routes, on their use case."""
    router = APIRouter(tags=["health"], prefix="/health")

    @router.get("/live")
    async def live() -> dict[str, str]:
        """200 as long as the event loop turns."""
        return {"status": "live"}

    @router.get("/ready")
    async def ready() -> JSONResponse:
        """200 when requests can be served: not before the model named at start is loaded, not while draining."""
        reason = lifecycle.unready_reason
        if reason is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": reason}, 503, {"Retry-After": "5"})

    return router

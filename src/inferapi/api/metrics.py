"""``GET /metrics``, and the errors that are counted for it where clients are told them."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response
from starlette.types import Scope

from inferapi.api.auth import Access
from inferapi.application.lifecycle import ModelLifecycle
from inferapi.domain.errors import InferapiError
from inferapi.domain.telemetry import Metrics, counts_as_rejected

_EXAMPLE = (
    "# HELP inferapi_num_requests_running Requests that a model works on.\n"
    "# TYPE inferapi_num_requests_running gauge\n"
    'inferapi_num_requests_running{model="HuggingFaceTB/SmolLM2-135M-Instruct"} 1.0\n'
)


def metrics_router(lifecycle: ModelLifecycle, metrics: Metrics, access: Access) -> APIRouter:
    """The route, on what it reads.

    Any key will do, as for ``/status`` and ``/events``, which tell the same of models and their load; a key without
    any scope can read these alone. Without a key nobody is told who is served how much of what.
    """
    router = APIRouter(tags=["status"], dependencies=[access.needs(None)])

    @router.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses={200: {"description": "All metrics.", "content": {"text/plain": {"example": _EXAMPLE}}}},
    )
    async def read() -> Response:
        """Counters, gauges and histograms in Prometheus's text format. Reading wakes no model and keeps none awake."""
        page = metrics.page(lifecycle.status())
        return Response(page, headers={"Content-Type": metrics.media_type, "Cache-Control": "no-store"})

    return router


def note_error(scope: Scope, error: InferapiError) -> None:
    """A client is told an error: count its request as rejected, if that is what it is."""
    if counts_as_rejected(error):
        note_rejected(scope, error.code)


def note_rejected(scope: Scope, code: str) -> None:
    """Count a request as rejected."""
    app = scope.get("app")
    metrics: Metrics | None = getattr(app.state, "metrics", None) if app is not None else None
    if metrics is not None:
        metrics.request_rejected(code)

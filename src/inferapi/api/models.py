"""Which model is loaded: load, change, unload, and the inactivity threshold."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, Field, StringConstraints
from starlette.responses import Response

from inferapi.api.auth import Access
from inferapi.api.disconnect import until_disconnect
from inferapi.api.json_route import JsonRoute
from inferapi.api.progress import with_progress
from inferapi.api.schema import Body, ModelName
from inferapi.api.sse import MEDIA_TYPE, respond
from inferapi.application.lifecycle import ModelLifecycle
from inferapi.application.placement import FitAnswer
from inferapi.application.policy import NEVER_S, checked_threshold_s
from inferapi.domain.model import EngineFacts, LoadOptions, ModelRef, Quantization
from inferapi.domain.states import LoadProgress

GB = 1e9


class LoadFields(Body):
    """How to load a model."""

    revision: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = None
    quantization: Annotated[Quantization, Field(strict=False)] | None = Field(
        None, description="The weights of linear layers in memory; null keeps them in dtype. Left out: the server's."
    )
    pinned: bool | None = Field(
        None, description="Keep it: it makes room for no other model and is not unloaded when idle."
    )
    dry_run: bool = Field(False, description="Answer what loading would need, and load nothing.")

    def options(self, default: LoadOptions) -> LoadOptions:
        """What was asked for; what was not comes from ``default``. A quantization of null is asked for."""
        asks_quantization = "quantization" in self.model_fields_set
        return LoadOptions(
            dtype=self.dtype or default.dtype,
            quantization=self.quantization if asks_quantization else default.quantization,
        )


class LoadBody(LoadFields):
    """Which model to load."""

    model_name: ModelName


class ChangeBody(LoadFields):
    """Which model to change to."""

    new_model_name: ModelName


class UnloadBody(Body):
    """Which model to unload; the current one without a name."""

    model_name: ModelName | None = None


class ThresholdBody(Body):
    """When to unload an idle model."""

    new_threshold: Annotated[int, AfterValidator(checked_threshold_s)] = Field(
        ge=NEVER_S, le=10**9, description="Whole seconds, at least 1, or -1 for never."
    )


class StatusReply(BaseModel):
    """What happened."""

    status: str


def models_router(lifecycle: ModelLifecycle, access: Access) -> APIRouter:
    """The routes, on their use case."""
    router = APIRouter(tags=["models"], route_class=JsonRoute, dependencies=[access.needs("admin")])

    @router.post("/load_model", response_model=StatusReply)
    async def load_model(body: LoadBody, request: Request) -> Response:
        """Make a model resident and current. The load goes on if the client leaves.

        With ``Accept: text/event-stream`` its progress is streamed.
        """
        ref, options = ModelRef.parse(body.model_name, body.revision), body.options(lifecycle.default_options)
        if body.dry_run:
            return _fit(await until_disconnect(request, lifecycle.fit(ref, options)))
        steps = with_progress(lambda listener: lifecycle.load(ref, options, pinned=body.pinned, listener=listener))
        return await _respond(request, steps, lambda _: f"Model {body.model_name} loaded successfully")

    @router.post("/change_model", response_model=StatusReply)
    async def change_model(body: ChangeBody, request: Request) -> Response:
        """Replace the current model; if that fails, the old one is back. Goes on if the client leaves.

        With ``Accept: text/event-stream`` its progress is streamed.
        """
        ref, options = ModelRef.parse(body.new_model_name, body.revision), body.options(lifecycle.default_options)
        if body.dry_run:
            return _fit(await until_disconnect(request, lifecycle.fit(ref, options, replacing=True)))
        steps = with_progress(lambda listener: lifecycle.change(ref, options, pinned=body.pinned, listener=listener))
        return await _respond(
            request,
            steps,
            lambda facts: f"Changed to model {body.new_model_name} successfully ({facts.weights_bytes / GB:.2f} GB)",
        )

    @router.post("/unload_model")
    async def unload_model(body: UnloadBody | None = None) -> StatusReply:
        """Take a model out of memory and do not bring it back at the next request, or cancel its load."""
        name = body.model_name if body else None
        unloaded, was_loading = await lifecycle.unload(ModelRef.parse(name) if name else None)
        if was_loading:
            return StatusReply(status=f"Loading of model {unloaded} cancelled")
        return StatusReply(status=f"Model {unloaded} unloaded successfully")

    @router.post("/change_inactivity_threshold")
    async def change_inactivity_threshold(body: ThresholdBody) -> StatusReply:
        """Unload the model after so long without use."""
        lifecycle.set_inactivity_threshold(body.new_threshold)
        return StatusReply(status=f"Inactivity threshold changed to {body.new_threshold} seconds")

    return router


async def _respond(
    request: Request, steps: AsyncGenerator[LoadProgress | EngineFacts], status: Callable[[EngineFacts], str]
) -> Response:
    """What happened; with every step on the way there for those who ask for events."""

    def encode(step: LoadProgress | EngineFacts) -> dict[str, Any]:
        return asdict(step) if isinstance(step, LoadProgress) else {"status": status(step)}

    return await respond(request, steps, encode, stream=MEDIA_TYPE in request.headers.get("accept", ""))


def _fit(answer: FitAnswer) -> JSONResponse:
    report = answer.report
    return JSONResponse(
        asdict(report)
        | {
            "fits": answer.fits,
            "can_ever_fit": report.can_ever_fit,
            "needed_bytes": report.needed_bytes,
            "would_evict": list(answer.would_evict),
            "alternatives": [asdict(alternative) for alternative in answer.alternatives],
            "expected_load_s": answer.expected_load_s,
        }
    )

"""Which model is loaded: load, change, unload, the inactivity threshold, and what there is."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, Field, StringConstraints

from inferapi.api.json_route import JsonRoute
from inferapi.api.schema import Body
from inferapi.application.lifecycle import ModelLifecycle
from inferapi.application.policy import NEVER_S, checked_threshold_s
from inferapi.domain.model import EngineFacts, FitReport, LoadOptions, ModelRef, ModelState, ModelStatus

Name = Annotated[str, StringConstraints(min_length=1, max_length=256)]
GB = 1e9


class LoadFields(Body):
    """How to load a model."""

    revision: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    dtype: Literal["auto", "bfloat16", "float16", "float32"] | None = None
    quantization: None = Field(None, description="Not available yet.")
    dry_run: bool = Field(False, description="Answer what loading would need, and load nothing.")

    def options(self) -> LoadOptions | None:
        """What was asked for; ``None`` leaves it to the server."""
        return LoadOptions(dtype=self.dtype) if self.dtype else None


class LoadBody(LoadFields):
    """Which model to load."""

    model_name: Name


class ChangeBody(LoadFields):
    """Which model to change to."""

    new_model_name: Name


class UnloadBody(Body):
    """Which model to unload; the current one without a name."""

    model_name: Name | None = None


class ThresholdBody(Body):
    """When to unload an idle model."""

    new_threshold: Annotated[int, AfterValidator(checked_threshold_s)] = Field(
        ge=NEVER_S, le=10**9, description="Whole seconds, at least 1, or -1 for never."
    )


class StatusReply(BaseModel):
    """What happened."""

    status: str


def models_router(lifecycle: ModelLifecycle) -> APIRouter:
    """The routes, on their use case."""
    router = APIRouter(tags=["models"], route_class=JsonRoute)

    @router.post("/load_model", response_model=StatusReply)
    async def load_model(body: LoadBody) -> Any:
        """Make a model resident and current. The load goes on if the client leaves."""
        ref = ModelRef.parse(body.model_name, body.revision)
        if body.dry_run:
            return _fit(await lifecycle.fit(ref, body.options()))
        await lifecycle.load(ref, body.options())
        return StatusReply(status=f"Model {body.model_name} loaded successfully")

    @router.post("/change_model", response_model=StatusReply)
    async def change_model(body: ChangeBody) -> Any:
        """Replace the current model; if that fails, the old one is back. Goes on if the client leaves."""
        ref = ModelRef.parse(body.new_model_name, body.revision)
        if body.dry_run:
            return _fit(await lifecycle.fit(ref, body.options()))
        facts = await lifecycle.change(ref, body.options())
        size = facts.weights_bytes / GB
        return StatusReply(status=f"Changed to model {body.new_model_name} successfully ({size:.2f} GB)")

    @router.post("/unload_model")
    async def unload_model(body: UnloadBody | None = None) -> StatusReply:
        """Take a model out of memory, and do not bring it back at the next request."""
        name = body.model_name if body else None
        unloaded = await lifecycle.unload(ModelRef.parse(name) if name else None)
        return StatusReply(status=f"Model {unloaded} unloaded successfully")

    @router.post("/change_inactivity_threshold")
    async def change_inactivity_threshold(body: ThresholdBody) -> StatusReply:
        """Unload the model after so long without use."""
        lifecycle.set_inactivity_threshold(body.new_threshold)
        return StatusReply(status=f"Inactivity threshold changed to {body.new_threshold} seconds")

    @router.get("/status")
    async def status() -> dict[str, Any]:
        """What is loaded, how busy it is, and how full the memory. Reading it wakes no model."""
        lines = lifecycle.status()
        current = str(lifecycle.current) if lifecycle.current else None
        device = lifecycle.device()
        return {
            "state": next((line.state for line in lines if line.name == current), _state(lines)),
            "current_model": current,
            "models": [_line(line) for line in lines],
            "memory": {
                "total_bytes": device.total_bytes,
                "used_bytes": device.total_bytes - device.free_bytes,
                "free_bytes": device.free_bytes,
            },
            "inactivity_threshold_s": lifecycle.inactivity_threshold_s,
        }

    return router


def _state(lines: list[ModelStatus]) -> ModelState:
    """Of the server when no model is current: what the one being loaded is at, if there is one."""
    return lines[-1].state if lines else ModelState.UNLOADED


def _line(line: ModelStatus) -> dict[str, Any]:
    facts = dict.fromkeys(field.name for field in fields(EngineFacts))
    if line.facts is not None:
        facts = asdict(line.facts)
    del facts["model"]
    return {
        "name": line.name,
        "state": line.state,
        "in_flight": line.in_flight,
        "queued": line.queued,
        "last_used": line.last_used_s,
        "unloads_in_s": line.unloads_in_s,
        **facts,
    }


def _fit(report: FitReport) -> JSONResponse:
    verdict = {"fits": report.fits, "can_ever_fit": report.can_ever_fit, "needed_bytes": report.needed_bytes}
    return JSONResponse(asdict(report) | verdict)

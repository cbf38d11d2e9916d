"""What there is and why: models, memory, and the journal. Reading wakes no model and keeps none awake."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Annotated, Any

from fastapi import APIRouter, Query

from inferapi.api.auth import Access
from inferapi.api.schema import ModelName
from inferapi.application.journal import Event
from inferapi.application.lifecycle import ModelLifecycle
from inferapi.domain.model import EngineFacts
from inferapi.domain.states import ModelState, ModelStatus

_MOST_EVENTS = 1000
_EVENTS = 100


def status_router(lifecycle: ModelLifecycle, access: Access) -> APIRouter:
    """The routes, on their use case."""
    router = APIRouter(tags=["status"], dependencies=[access.needs(None)])

    @router.get("/status")
    async def status() -> dict[str, Any]:
        """What is loaded, how busy it is, and how full the memory."""
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

    @router.get("/events")
    async def events(
        model: Annotated[ModelName | None, Query(description="Of this model only.")] = None,
        after: Annotated[int, Query(ge=0, le=2**53, description="Later than the event of this id.")] = 0,
        limit: Annotated[int, Query(ge=1, le=_MOST_EVENTS, description="The newest so many.")] = _EVENTS,
    ) -> dict[str, Any]:
        """Why models were loaded, refused, evicted and unloaded; estimates against what was measured; oldest first."""
        found = lifecycle.events(model=model, after_id=after, limit=limit)
        return {"events": [_event(event) for event in found]}

    return router


def _state(lines: list[ModelStatus]) -> ModelState:
    """Of the server when no model is current: what the one being loaded is at, if there is one."""
    return next((line.state for line in reversed(lines) if line.progress is not None), ModelState.UNLOADED)


def _line(line: ModelStatus) -> dict[str, Any]:
    facts = dict.fromkeys(field.name for field in fields(EngineFacts))
    if line.facts is not None:
        facts = asdict(line.facts)
    del facts["model"], facts["tag_tokens"]  # told as the name; for the grammars of answers alone
    return {
        "name": line.name,
        "state": line.state,
        "in_flight": line.in_flight,
        "queued": line.queued,
        "last_used": line.last_used_s,
        "unloads_in_s": line.unloads_in_s,
        "pinned": line.pinned,
        "progress": line.progress,
        **facts,
    }


def _event(event: Event) -> dict[str, Any]:
    return {
        "id": event.event_id,
        "time": event.time_s,
        "event": event.kind,
        "model": event.model,
        "reason": event.reason,
        **event.facts,
    }

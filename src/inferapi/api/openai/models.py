"""``GET /v1/models``: which models can be named. Reading wakes no model and keeps none awake."""

from __future__ import annotations

from fastapi import APIRouter

from inferapi.api.auth import Access
from inferapi.api.openai.replies import ERRORS, ModelReply, ModelsReply
from inferapi.application.catalog import Catalog, KnownModel
from inferapi.domain.model import ModelRef

_NOBODY = "inferapi"  # owns the models that have no organization


def model_list_router(catalog: Catalog, access: Access) -> APIRouter:
    """The routes, on their use case."""
    router = APIRouter(prefix="/v1", tags=["openai"], dependencies=[access.needs(None)], responses=ERRORS)

    @router.get("/models")
    async def models() -> ModelsReply:
        """Models in memory, on their way there, or in the models folder, with their state.

        A request may name others, too: they are loaded from the hub, where the operator allows it.
        """
        return ModelsReply(object="list", data=[_reply(model) for model in await catalog.all()])

    @router.get("/models/{model:path}")
    async def model(model: str) -> ModelReply:
        """One of these models."""
        return _reply(await catalog.one(ModelRef.parse(model)))

    return router


def _reply(model: KnownModel) -> ModelReply:
    organization = model.name.rpartition("/")[0]
    return ModelReply(
        id=model.name,
        object="model",
        created=int(model.since_s),
        owned_by=organization or _NOBODY,
        state=model.state.value,
    )

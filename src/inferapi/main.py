"""The ASGI factory: settings, container, app. ``uvicorn --factory inferapi.main:create``."""

from __future__ import annotations

from fastapi import FastAPI

from inferapi.container import Container
from inferapi.logs import configure_logging
from inferapi.settings import Settings


def create(settings: Settings | None = None) -> FastAPI:
    """Build the application from the environment, or from given settings."""
    settings = settings or Settings()
    configure_logging(settings.log_level, as_text=settings.logs_as_text)
    app: FastAPI = Container(settings=settings).app()
    return app

"""The name of a request's route: its template. A path holds what clients chose, session ids among it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from starlette.types import Scope


class RouteNames:
    """Names routes by their templates, from a bounded set, and never by a path."""

    def __init__(self) -> None:
        self._known: frozenset[str] | None = None

    def of(self, scope: Scope, path: str) -> str | None:
        """The template that a request met, ``None`` if it met none.

        A request that was turned away before it was routed has the name of the route that takes its ``path`` as it is.
        """
        template = getattr(scope.get("route"), "path", None)
        if isinstance(template, str):
            return template
        if self._known is None:
            self._known = frozenset(_templates(scope["app"].routes))
        return path if path in self._known else None


def _templates(routes: Iterable[Any]) -> Iterator[str]:
    for route in routes:
        included = getattr(route, "original_router", None)  # FastAPI keeps included routers whole
        if included is not None:
            yield from _templates(included.routes)
        elif isinstance(template := getattr(route, "path", None), str):
            yield template

"""Routes whose bodies are JSON in UTF-8 and in nothing else, as RFC 8259 section 8.1 has it, and within bounds.

``json.loads`` guesses UTF-16 and UTF-32 from bytes; what one reader guesses, the next reads otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.routing import APIRoute

from inferapi.api.json_bounds import MOST_VALUES, bounded_json


class _BoundedRequest(Request):
    most_values, takes_nul = MOST_VALUES, False

    async def json(self) -> Any:
        return bounded_json(await self.body(), self.most_values, takes_nul=self.takes_nul)


class JsonRoute(APIRoute):
    """The ``route_class`` of every router here."""

    most_values: ClassVar[int] = MOST_VALUES
    takes_nul: ClassVar[bool] = False

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The framework's handler, on a request that decodes strictly."""
        handle = super().get_route_handler()

        async def handle_bounded(request: Request) -> Response:
            for needed in self.dependencies:  # who may not ask is told so before anything that was sent is read
                await needed.dependency(request)  # type: ignore[misc]  # ``Access.needs`` gives a coroutine function
            bounded = _BoundedRequest(request.scope, request.receive)
            bounded.most_values, bounded.takes_nul = self.most_values, self.takes_nul
            if self.body_field is not None:
                await bounded.body()  # the framework would take whoever leaves meanwhile for one that sends no JSON
            return await handle(bounded)

        return handle_bounded


def export_route(*, most_values: int) -> type[JsonRoute]:
    """The same for routes that take back what was exported: it may have more values, and what a model wrote."""

    class ExportRoute(JsonRoute):
        pass

    ExportRoute.most_values, ExportRoute.takes_nul = max(most_values, MOST_VALUES), True
    return ExportRoute

"""Routes whose bodies are JSON in UTF-8 and in nothing else, as RFC 8259 section 8.1 has it.

``json.loads`` guesses UTF-16 and UTF-32 from bytes; what one reader guesses, the next reads otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute


class _Utf8Request(Request):
    async def json(self) -> Any:
        return json.loads((await self.body()).decode("utf-8"))


class JsonRoute(APIRoute):
    """The ``route_class`` of every router here."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The framework's handler, on a request that decodes strictly."""
        handle = super().get_route_handler()

        async def handle_utf8(request: Request) -> Response:
            for needed in self.dependencies:  # who may not ask is told so before anything that was sent is read
                await needed.dependency(request)  # type: ignore[misc]  # ``Access.needs`` gives a coroutine function
            return await handle(_Utf8Request(request.scope, request.receive))

        return handle_utf8

"""What is to be done once a request is over, however it ended."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

_AT_END = "inferapi.at_end"


class AtEnd:
    """Does what ``at_end`` was told, when the application has nothing more to do for a request.

    That is after the last byte of a stream, after its client has left, after an error or a cancel: all of them end the
    call of the application. A dependency with ``yield`` would not do, since ``JsonRoute`` asks before FastAPI does.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with ExitStack() as stack:
            scope[_AT_END] = stack
            await self._app(scope, receive, send)


def at_end(request: Request, act: Callable[[], None]) -> None:
    """Have ``act`` called, once, when the request is over; the last one told is the first one called."""
    stack: ExitStack = request.scope[_AT_END]
    stack.callback(act)

"""What is to be done once a request is over, however it ended."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_AT_END = "inferapi.at_end"


class AtEnd:
    """Does what ``at_end`` was told, when a request is over.

    That is when the last piece of its answer is handed on: a client that has it all may ask again before the
    application has tidied up. Otherwise (its client has left, an error, a cancel) it is at the end of the application's
    call. A dependency with ``yield`` would not do, since ``JsonRoute`` asks before FastAPI does.
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

            async def send_and_end(message: Message) -> None:
                if message["type"] == "http.response.body" and not message.get("more_body", False):
                    stack.close()
                await send(message)

            await self._app(scope, receive, send_and_end)


def at_end(request: Request, act: Callable[[], None]) -> None:
    """Have ``act`` called, once, when the request is over; the last one told is the first one called."""
    stack: ExitStack = request.scope[_AT_END]
    stack.callback(act)

"""What every request passes, as plain ASGI: an id, a log line, and a look at the body before anybody reads it.

Starlette's ``BaseHTTPMiddleware`` is not used: it can hide that a client has gone.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inferapi.api.client_address import client_address
from inferapi.api.error_handlers import error_response
from inferapi.api.errors import ProblemException
from inferapi.domain.errors import BodyTooLarge, UnexpectedError, UnsupportedMediaType
from inferapi.logs import request_id

log = logging.getLogger("inferapi.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class RequestIds:
    """Gives every request an id, the client's if it is a decent one, in the response, the log and the errors.

    And the last word: whatever no handler caught becomes an answer here, with the id.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        wanted = Headers(scope=scope).get("x-request-id", "")
        current = wanted if _REQUEST_ID.fullmatch(wanted) else uuid.uuid4().hex
        request_id.set(current)
        started_s, status = time.monotonic(), 0
        path = scope["path"].removeprefix(
            scope.get("root_path", "")
        )  # without the proxy's prefix; routing changes both

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = current
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            log.exception("unexpected error")
            if status:  # too late for another word: the server cuts the response off
                raise
            await error_response(scope, UnexpectedError())(scope, receive, send_with_id)
        finally:
            level = logging.DEBUG if path.startswith("/health/") else logging.INFO
            duration_ms, client = 1000 * (time.monotonic() - started_s), client_address(scope)
            log.log(level, "%s %r %d in %.0f ms for %s", scope["method"], path[:200], status, duration_ms, client)


class BodyGate:
    """Refuses bodies that are no JSON by their own word, and counts bytes as they arrive, declared or not.

    Args:
        larger: paths whose bodies may be longer, and how long.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, larger: Mapping[str, int]) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._larger = larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        has_body = "transfer-encoding" in headers or declared not in {"", "0"}
        if has_body and headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            await error_response(scope, UnsupportedMediaType())(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        limit_bytes = max(self._max_body_bytes, self._larger.get(path, 0))
        too_large = BodyTooLarge(limit_bytes=limit_bytes)
        if declared.isdecimal() and int(declared) > limit_bytes:
            response = error_response(scope, too_large)
            response.headers["Connection"] = "close"  # or the server would have to read it all
            await response(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit_bytes:
                raise ProblemException(too_large)
            return message

        await self._app(scope, counted, send)

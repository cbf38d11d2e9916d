"""What every request passes, as plain ASGI: an id, a log line, and a look at the body before anybody reads it.

Starlette's ``BaseHTTPMiddleware`` is not used: it can hide that a client has gone.
"""

from __future__ import annotations

import asyncio
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
from inferapi.api.route_names import RouteNames
from inferapi.api.trace_context import trace_parent
from inferapi.domain.errors import BodyTooLarge, ReceiveTimeout, UnexpectedError, UnsupportedMediaType
from inferapi.domain.tracing import Arrival, Tracing, Untraced
from inferapi.logs import request_id, trace_id

log = logging.getLogger("inferapi.access")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
_PROBES = ("/health/", "/metrics")  # asked for all the time: lines at debug, and in no trace
_NO_ROUTE = "(no route)"
_MOST_DIGITS = 18  # Python takes no number of thousands of them


class RequestIds:
    """Gives every request an id, the client's if it is a decent one, in the response, the log and the errors.

    And a trace: the client's by its ``traceparent``, or a new one. And the last word: whatever no handler caught
    becomes an answer here, with the id.
    """

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing
        self._untraced = Untraced()
        self._routes = RouteNames()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        wanted = headers.get("x-request-id", "")
        current = wanted if _REQUEST_ID.fullmatch(wanted) else uuid.uuid4().hex
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        path = scope["path"].removeprefix(scope.get("root_path", ""))  # now: routing changes both
        is_probe = path.startswith(_PROBES)
        started_s, status, error = time.monotonic(), 0, "no_answer"
        tracing = self._untraced if is_probe else self._tracing
        trace = tracing.begin(Arrival(method, current, trace_parent(headers.getlist("traceparent"))))
        request_id.set(current)
        trace_id.set(trace.trace_id)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = current
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
            error = ""
        except Exception:
            error = UnexpectedError.code
            log.exception("unexpected error")
            if status:  # too late for another word: the server cuts the response off
                raise
            await error_response(scope, UnexpectedError())(scope, receive, send_with_id)
        finally:
            route = self._routes.of(scope, path)
            level = logging.DEBUG if is_probe else logging.INFO
            duration_ms = round(1000 * (time.monotonic() - started_s))
            told = (method, route or _NO_ROUTE, status, duration_ms, client_address(scope))
            fields = dict(zip(("method", "route", "status", "duration_ms", "client"), told, strict=True))
            log.log(level, "%s %r %d in %d ms for %s", *told, extra={"fields": fields})
            trace.end(route, status or None, error or None)


class BodyGate:
    """Refuses bodies that are no JSON by their own word, and counts bytes and time as they arrive, declared or not.

    Args:
        receive_timeout_s: the last byte must have come so long after the headers.
        larger: paths whose bodies may be longer, and how long.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, receive_timeout_s: float, larger: Mapping[str, int]) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._receive_timeout_s = receive_timeout_s
        self._larger = larger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "")
        has_body = "transfer-encoding" in headers or declared not in {"", "0"}
        # A page of any site may have a browser send a POST with no body, and asks nobody; not one that says it is JSON.
        is_of_a_page = scope["method"] == "POST" and "origin" in headers
        if (has_body or is_of_a_page) and headers.get("content-type", "").split(";")[
            0
        ].strip().lower() != "application/json":
            await error_response(scope, UnsupportedMediaType())(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        limit_bytes = max(self._max_body_bytes, self._larger.get(path, 0))
        too_large = BodyTooLarge(limit_bytes=limit_bytes)
        if declared.isdecimal() and (len(declared) > _MOST_DIGITS or int(declared) > limit_bytes):
            await error_response(scope, too_large)(scope, receive, send)
            return
        received, is_whole = 0, False
        deadline_s = asyncio.get_running_loop().time() + self._receive_timeout_s

        async def counted() -> Message:
            nonlocal received, is_whole
            if is_whole:  # it waits for the client to leave
                return await receive()
            try:
                async with asyncio.timeout_at(deadline_s):
                    message = await receive()
            except TimeoutError as error:
                raise ProblemException(ReceiveTimeout(timeout_s=self._receive_timeout_s)) from error
            received += len(message.get("body", b""))
            if received > limit_bytes:
                raise ProblemException(too_large)
            is_whole = not message.get("more_body", False)
            return message

        await self._app(scope, counted, send)

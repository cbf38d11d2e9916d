"""Errors that leave a route become answers, in the shape that the clients of its path know."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Scope

from inferapi.api.errors import PROBLEM_MEDIA_TYPE, ProblemException, details_response, log_cause, problem_response
from inferapi.api.metrics import note_error, note_rejected
from inferapi.api.openai.errors import error_object, error_response_of, openai_response, speaks_openai
from inferapi.domain.errors import InferapiError, InvalidJson, InvalidRequest

PROBLEMS: dict[int | str, dict[str, Any]] = {
    "default": {
        "description": "What went wrong, as RFC 9457 problem details; `code` is stable.",
        "content": {
            PROBLEM_MEDIA_TYPE: {
                "schema": {
                    "type": "object",
                    "required": ["type", "title", "status", "detail", "instance", "code"],
                    "properties": {
                        "type": {"type": "string", "format": "uri"},
                        "title": {"type": "string"},
                        "status": {"type": "integer"},
                        "detail": {"type": "string"},
                        "instance": {"type": "string", "format": "uri"},
                        "code": {"type": "string"},
                    },
                }
            }
        },
    }
}
"""The errors of every route but OpenAI's, for the manual."""
_CLIENT_CLOSED_REQUEST = 499
_FIELD = re.compile(r"[A-Za-z0-9_]{1,64}")
_MOST_TOLD = 10


def error_response(scope: Scope, error: InferapiError) -> Response:
    """The error as a response: OpenAI's shape under ``/v1``, problem details elsewhere. It is counted."""
    note_error(scope, error)
    return openai_response(error) if speaks_openai(scope) else problem_response(error)


def add_error_handlers(app: FastAPI) -> None:
    """Make the errors that leave a route answers; the unforeseen ones are the middleware's."""

    @app.exception_handler(InferapiError)
    async def _domain(request: Request, error: InferapiError) -> Response:
        log_cause(error)
        return error_response(request.scope, error)

    @app.exception_handler(RequestValidationError)
    async def _validation(request: Request, error: RequestValidationError) -> Response:
        found = error.errors()
        if any(entry["type"] == "json_invalid" for entry in found):
            return error_response(request.scope, InvalidJson())
        return error_response(request.scope, _invalid(found, indexed=speaks_openai(request.scope)))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        if isinstance(error, ProblemException):
            return error_response(request.scope, error.error)
        # Raised by the framework: no such path or method, or a body that it could not read.
        if error.status_code == HTTPStatus.BAD_REQUEST:
            return error_response(request.scope, InvalidJson())
        phrase, headers = HTTPStatus(error.status_code).phrase, dict(error.headers or {})
        code = phrase.lower().replace(" ", "_")
        note_rejected(request.scope, code)
        if speaks_openai(request.scope):
            told = error_object(error.status_code, code, f"{phrase}.")
            return error_response_of(error.status_code, told, headers)
        return details_response(error.status_code, code, f"{phrase}.", headers)

    @app.exception_handler(ClientDisconnect)
    async def _gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=_CLIENT_CLOSED_REQUEST)  # for the log: nobody reads it


def _invalid(found: Sequence[Any], *, indexed: bool) -> InvalidRequest:
    """What is wrong and where, without what was sent; the first place is told as a fact of its own."""
    told = found[:_MOST_TOLD]
    places = [_place(entry["loc"], indexed=indexed) for entry in told]
    problem = "; ".join(
        f"{place or 'body'}: {entry['msg'].removeprefix('Value error, ')}"
        for place, entry in zip(places, told, strict=True)
    )
    param = places[0] if "…" not in places[0] else ""  # a name that is not told
    return InvalidRequest(problem=problem, param=param or None)


def _place(loc: Sequence[str | int], *, indexed: bool) -> str:
    """Where it is: ``a.0.b``, or ``a[0].b`` as OpenAI has it; empty for the body itself."""
    source, *path = loc
    if source == "header":  # named by the route, not by the client
        return ".".join(map(str, path))
    if source != "body" and not indexed:  # OpenAI names a parameter alone, wherever it stands
        path = [source, *path]
    place = ""
    for step in path:
        if indexed and isinstance(step, int):
            place += f"[{step}]"
        else:
            shown = str(step) if _FIELD.fullmatch(str(step)) else "…"
            place += f".{shown}" if place else shown
    return place

"""Errors under ``/v1``: OpenAI's shape, with the codes and, but for what a client got wrong, the statuses of all."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Scope

from inferapi.api.errors import ANSWERS, headers_of
from inferapi.domain.errors import (
    ContextWindowExceeded,
    EmbeddingsRefused,
    InferapiError,
    InvalidInput,
    InvalidRequest,
    ModelNameInvalid,
    ModelNotFound,
    ModelUnavailable,
)

_PREFIX = "/v1"
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_WORDS: dict[type[InferapiError], str] = {  # those by which OpenAI's clients know them
    ContextWindowExceeded: (
        "This model's maximum context length is {context_window_tokens} tokens. However, you requested "
        "{prompt_tokens} tokens in the prompt and {max_new_tokens} for the completion. "
        "Please reduce the length of either one."
    ),
    ModelNotFound: "The model {model} does not exist, or this server does not have it.",
}
_NAMED = re.compile(r"([a-z][a-z0-9_]{0,63}(?:\[[0-9]{1,6}\]|\.[a-z][a-z0-9_]{0,63}){0,8}): ")


def speaks_openai(scope: Scope) -> bool:
    """Whether who asks expects OpenAI's shape. It decides on shapes alone, never on who is let in."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path == _PREFIX or path.startswith(f"{_PREFIX}/")


def openai_error(error: InferapiError) -> dict[str, Any]:
    """The error as OpenAI's clients read it: ``{"message", "type", "param", "code"}``."""
    return error_object(_status(error), error.code, _message(error), _param(error))


def openai_response(error: InferapiError) -> Response:
    """The error as a response."""
    return error_response_of(_status(error), openai_error(error), headers_of(error))


def error_object(status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """What stands under ``error``."""
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else _TYPES.get(status, "invalid_request_error")
    return {"message": message, "type": kind, "param": param, "code": code}


def error_response_of(status: int, error: dict[str, Any], headers: dict[str, str]) -> Response:
    """An error object as a response."""
    return Response(msgspec.json.encode({"error": error}), status, headers, "application/json")


def _status(error: InferapiError) -> int:
    """What a client got wrong is 400, as OpenAI has it: its clients tell 422 apart from that."""
    status = ANSWERS[type(error)].status
    is_wrong = isinstance(error, InvalidInput) and status == HTTPStatus.UNPROCESSABLE_ENTITY
    return HTTPStatus.BAD_REQUEST if is_wrong else status


def _message(error: InferapiError) -> str:
    """What happened."""
    words = _WORDS.get(type(error))
    return words.format(**error.facts) if words else error.message


def _param(error: InferapiError) -> str | None:
    """The field that is wrong, where one is: by the fact of that name, else by how the problem begins."""
    named = error.facts.get("param")
    if isinstance(named, str):
        return named
    if isinstance(error, EmbeddingsRefused | ModelNameInvalid | ModelUnavailable):
        return "model"
    match = _NAMED.match(error.message) if isinstance(error, InvalidRequest) else None
    return match[1] if match and match[1] != "body" else None

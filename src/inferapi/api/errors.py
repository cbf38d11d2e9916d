"""Errors to HTTP: the one table of statuses, and the shape of all but OpenAI's routes, RFC 9457 problem details."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from inferapi.domain import errors
from inferapi.domain.errors import InferapiError
from inferapi.logs import request_id

log = logging.getLogger(__name__)

PROBLEM_MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Answer:
    """How HTTP says an error.

    Attributes:
        retry_after_s: when to come again, unless the error knows better: a fact of that name goes before it.
        should_retry: false tells clients that retry by themselves not to.
        challenge: how to authenticate (RFC 9110, section 11.6.1).
        names_request: whether the body has the request's id. Without it all such bodies are the same to the byte, so
            that nobody can tell, say, a session of another owner from none.
        closes_connection: what is left of the request is not read: it may be anything, and without end.
    """

    status: int
    retry_after_s: int | None = None
    should_retry: bool | None = None
    challenge: str | None = None
    names_request: bool = True
    closes_connection: bool = False


ANSWERS: dict[type[InferapiError], Answer] = {
    errors.InvalidJson: Answer(400),
    errors.InvalidRequest: Answer(422),
    errors.UnsupportedMediaType: Answer(415),
    errors.BodyTooLarge: Answer(413, closes_connection=True),
    errors.HeadTooLarge: Answer(431, closes_connection=True),
    errors.MalformedHttp: Answer(400, closes_connection=True),
    errors.ReceiveTimeout: Answer(408, closes_connection=True),
    errors.ModelNameInvalid: Answer(422),
    errors.EmbeddingsRefused: Answer(422),
    errors.ContextWindowExceeded: Answer(422),
    errors.ModelNotFound: Answer(404),
    errors.ModelNotAllowed: Answer(403),
    errors.ModelGated: Answer(403),
    errors.ModelInvalid: Answer(422),
    errors.UnsafeWeights: Answer(422),
    errors.RemoteCodeRefused: Answer(422),
    errors.QuantizationRefused: Answer(400),
    errors.ModelTooLarge: Answer(422),
    errors.InsufficientMemory: Answer(503, retry_after_s=30),
    errors.ModelsInUse: Answer(503, retry_after_s=5),
    errors.InsufficientStorage: Answer(507, should_retry=False),
    errors.HubUnavailable: Answer(503, retry_after_s=30),
    errors.HubTimeout: Answer(504, retry_after_s=30),
    errors.DownloadIncomplete: Answer(503, retry_after_s=5),
    errors.LoadStalled: Answer(504, retry_after_s=30),
    errors.ModelLoadFailed: Answer(500),
    errors.ModelNotLoaded: Answer(409),
    errors.ModelLoading: Answer(503, retry_after_s=5),
    errors.LoadCancelled: Answer(409, should_retry=False),
    errors.OperationInProgress: Answer(409, retry_after_s=5),
    errors.QueueFull: Answer(503, retry_after_s=1),
    errors.TooManyConnections: Answer(503, retry_after_s=1, closes_connection=True),
    errors.ShuttingDown: Answer(503, retry_after_s=5),
    errors.GenerationTimeout: Answer(504, should_retry=False),
    errors.GenerationAborted: Answer(503, retry_after_s=5),
    errors.ModelCrashed: Answer(503, retry_after_s=1),
    errors.OutOfMemory: Answer(503, retry_after_s=5),
    errors.SessionNotFound: Answer(404, names_request=False),
    errors.ResponseNotFound: Answer(404, names_request=False),
    errors.SessionExists: Answer(409, should_retry=False),
    errors.SessionUnreadable: Answer(503, should_retry=False),
    errors.SessionBusy: Answer(409, retry_after_s=1),
    errors.HistoryNotSaved: Answer(503, should_retry=False),
    errors.SessionStoreUnavailable: Answer(503, retry_after_s=2),
    errors.Unauthenticated: Answer(401, challenge="Bearer"),
    errors.InsufficientScope: Answer(403),
    errors.AnonymousRefused: Answer(403),
    errors.HostNotTrusted: Answer(400),
    errors.RateLimitExceeded: Answer(429, retry_after_s=60),
    errors.ConcurrencyLimitExceeded: Answer(429, retry_after_s=1),
    errors.UnexpectedError: Answer(500),
}


class ProblemException(HTTPException):
    """A domain error raised where only the framework's own exception gets through."""

    def __init__(self, error: InferapiError) -> None:
        super().__init__(ANSWERS[type(error)].status)
        self.error = error


def problem(error: InferapiError) -> dict[str, Any]:
    """The error as problem details; numbers among its facts come as members of their own."""
    answer = ANSWERS[type(error)]
    counts = {
        name: fact for name, fact in error.facts.items() if isinstance(fact, int | float) and not isinstance(fact, bool)
    }
    instance = request_id.get() if answer.names_request else None
    return _details(answer.status, error.code, error.message, instance) | counts


def problem_response(error: InferapiError) -> Response:
    """The error as a response."""
    return _response(ANSWERS[type(error)].status, problem(error), headers_of(error))


def headers_of(error: InferapiError) -> dict[str, str]:
    """What is told beside the body: whether and when to come again, how to authenticate, and that this is the end."""
    answer = ANSWERS[type(error)]
    headers: dict[str, str] = {}
    retry_after_s = error.facts.get("retry_after_s", answer.retry_after_s)
    if retry_after_s is not None:
        headers["Retry-After"] = str(retry_after_s)
    if answer.should_retry is not None:
        headers["x-should-retry"] = str(answer.should_retry).lower()
    if answer.challenge is not None:
        headers["WWW-Authenticate"] = answer.challenge
    if answer.closes_connection:
        headers["Connection"] = "close"
    return headers


def details_response(status: int, code: str, detail: str, headers: dict[str, str]) -> Response:
    """Problem details of what is no error of the tree: the framework's own."""
    return _response(status, _details(status, code, detail, request_id.get()), headers)


def log_cause(error: InferapiError) -> None:
    """Tell the operator what the client is not told: why something here did not work."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if cause is not error and ANSWERS[type(error)].status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        log.warning("%s: %s: %s", error.code, type(cause).__name__, cause)


def _details(status: int, code: str, detail: str, instance: str | None) -> dict[str, Any]:
    return {
        "type": f"urn:inferapi:error:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "instance": f"urn:inferapi:request:{instance or ''}",
        "code": code,
    }


def _response(status: int, body: dict[str, Any], headers: dict[str, str]) -> Response:
    return Response(msgspec.json.encode(body), status, headers, PROBLEM_MEDIA_TYPE)

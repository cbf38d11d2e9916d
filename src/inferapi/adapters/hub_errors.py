"""What the hub library's exceptions mean: one table."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from http import HTTPStatus

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    SafetensorsParsingError,
)

from inferapi.domain.errors import (
    DownloadIncomplete,
    HubTimeout,
    HubUnavailable,
    InferapiError,
    InsufficientStorage,
    ModelGated,
    ModelInvalid,
    ModelLoadFailed,
    ModelNotFound,
)

WITHOUT_CREDENTIALS = (
    "Accept its terms on the model's page on the hub, and start the server with HUGGING_FACE_HUB_TOKEN set to a "
    "token of that account."
)
CREDENTIALS_REFUSED = "The hub refused HUGGING_FACE_HUB_TOKEN as invalid; start the server with a valid token."
NO_ACCESS = (
    "The account of HUGGING_FACE_HUB_TOKEN has no access: accept the terms on the model's page on the hub with that "
    "account, or give the token the right to read it."
)
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# By name: which HTTP library it is, is the hub library's own affair.
_TIMEOUTS = {"ConnectTimeout", "ReadTimeout", "WriteTimeout", "PoolTimeout"}
_UNREACHABLE = {"ConnectError", "ProxyError", "UnsupportedProtocol"}
_BROKEN_OFF = {"RemoteProtocolError", "ReadError"}


def translated(error: BaseException, model: str, endpoint: str, *, has_token: bool, downloading: bool) -> InferapiError:
    """The leaf for an exception of the hub library: the first in its chain that says something.

    ``endpoint`` is the hub's address: who else refuses a request speaks of its own signatures, not of the model.
    What breaks off while ``downloading`` is a download, whatever was asked.
    """
    for cause in chain(error):
        if isinstance(cause, InferapiError):
            return cause
        if isinstance(cause, HfHubHTTPError):
            return _refusal(cause, model, endpoint, has_token=has_token)
        if isinstance(cause, SafetensorsParsingError):
            return ModelInvalid(model=model, problem="its weights are truncated or no safetensors files")
        if leaf := _of_network(type(cause).__name__, downloading=downloading):
            return leaf(model=model)
        if type(cause) in {OSError, PermissionError, NotADirectoryError, FileExistsError}:
            return _of_file(cause, model)
    return HubUnavailable(model=model)


def chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, what it was raised from, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def _of_network(name: str, *, downloading: bool) -> type[InferapiError] | None:
    if name in _TIMEOUTS:
        return HubTimeout
    if name in _UNREACHABLE or (name in _BROKEN_OFF and not downloading):
        return HubUnavailable
    return DownloadIncomplete if name in _BROKEN_OFF else None


def _of_file(error: BaseException, model: str) -> InferapiError:
    number = getattr(error, "errno", None)
    if number in _NO_ROOM:
        return InsufficientStorage(model=model)
    if number is None:  # the library's own: the file is not as long as the hub said
        return DownloadIncomplete(model=model)
    return ModelLoadFailed(model=model, problem="the cache of the hub cannot be written")


def _refusal(error: HfHubHTTPError, model: str, endpoint: str, *, has_token: bool) -> InferapiError:
    status = error.response.status_code
    from_hub = str(error.response.url).startswith(f"{endpoint}/")
    if isinstance(error, GatedRepoError) or (status == HTTPStatus.FORBIDDEN and from_hub):
        return ModelGated(model=model, advice=NO_ACCESS if has_token else WITHOUT_CREDENTIALS)
    if not from_hub:
        return HubUnavailable(model=model)
    if isinstance(error, RemoteEntryNotFoundError) or status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return ModelInvalid(model=model, problem="the hub lists a file that is missing or empty there")
    if status == HTTPStatus.UNAUTHORIZED and has_token:
        return ModelGated(model=model, advice=CREDENTIALS_REFUSED)  # to a valid one it answers 403 or 404
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND}:
        return ModelNotFound(model=model)  # 401 without a token: unknown or private, the hub does not say
    return HubUnavailable(model=model)

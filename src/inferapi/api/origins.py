"""Whose web pages may read answers, and by which names the server may be called: CORS, and trusted hosts.

Both are off unless the operator names origins or hosts.
"""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inferapi.api.error_handlers import error_response
from inferapi.domain.errors import HostNotTrusted

_TRUSTED = "inferapi.is_trusted_host"
_METHODS = ("GET", "POST", "DELETE")
_ASKED = ("*",)  # clients have headers of their own, as OpenAI's; without cookies none of them is dangerous
_TOLD = ("X-Request-ID", "Retry-After", "x-should-retry", "WWW-Authenticate", "Content-Disposition")


def add_origin_checks(app: FastAPI, *, cors_origins: Sequence[str], trusted_hosts: Sequence[str]) -> None:
    """Put both around what the application has so far; what is added later is around them.

    A wrong host is refused before anything else, a preflight included. Every answer that comes from within, refusals
    of bodies and of keys too, can be read by the pages of ``cors_origins``. Credentials of a browser (cookies) are
    never asked for: a page sends its key in a header.
    """
    if cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=tuple(cors_origins),
            allow_methods=_METHODS,
            allow_headers=_ASKED,
            expose_headers=_TOLD,
            allow_credentials=False,
        )
    if trusted_hosts:
        app.add_middleware(TrustedHosts, trusted_hosts=tuple(trusted_hosts))


class TrustedHosts:
    """Refuses requests whose ``Host`` is none of the operator's names, in the shape that the path's clients know.

    So a page elsewhere cannot reach a server on loopback under a name of its own (DNS rebinding). Starlette's
    middleware compares; only its answer, in plain text, is not used.
    """

    def __init__(self, app: ASGIApp, trusted_hosts: Sequence[str]) -> None:
        self._app = app
        self._compare = TrustedHostMiddleware(_is_trusted, trusted_hosts, www_redirect=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await self._compare(scope, receive, _untold)
        if scope.get(_TRUSTED):
            await self._app(scope, receive, send)
        else:
            await error_response(scope, HostNotTrusted())(scope, receive, send)


async def _is_trusted(scope: Scope, _: Receive, __: Send) -> None:
    scope[_TRUSTED] = True


async def _untold(_: Message) -> None:
    pass

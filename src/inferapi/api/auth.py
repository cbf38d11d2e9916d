"""Who may do what: API keys and their scopes. Every router but health asks here; nothing is decided by a path."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from fastapi import Depends
from fastapi.security import HTTPBearer
from starlette.requests import Request
from starlette.types import Scope as AsgiScope

from inferapi.api.at_end import at_end
from inferapi.application.key_limits import KeyLimits
from inferapi.domain.errors import AnonymousRefused, InsufficientScope, Unauthenticated

Scope = Literal["infer", "admin"]

_BEARER = HTTPBearer(auto_error=False, description="An API key, where the server has keys.")  # for the manual alone
_LET_IN = "inferapi.let_in"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the server knows it: never the key itself.

    Attributes:
        key_id: what sessions belong to, and what logs may name.
        sha256: digest of the key. Keys are long and random, so that no slow hash is needed.
    """

    key_id: str
    sha256: bytes
    scopes: frozenset[Scope]


_ANYBODY = ApiKey("", b"", frozenset({"infer", "admin"}))


class Access:
    """Lets requests in that carry a key with the scope that a route needs, and counts them.

    Where there are no keys, everybody on this machine is let in, as one owner; others only if the operator says so.

    Args:
        limits: what one key may ask. Routes of ``admin`` are not counted: who operates must be able to act. What any
            key may read counts as a request, but not as one under way.
        allows_anonymous: without keys, also those who come from elsewhere are let in.
    """

    def __init__(self, keys: Sequence[ApiKey], limits: KeyLimits, *, allows_anonymous: bool = False) -> None:
        self._keys = tuple(keys)
        self._limits = limits
        self._allows_anonymous = allows_anonymous

    def needs(self, scope: Scope | None) -> Any:
        """A dependency for a router or a route: with ``None`` any valid key will do."""

        async def check(request: Request, _: Any = Depends(_BEARER)) -> None:
            # ``JsonRoute`` asks before a body is read, and FastAPI again: a request is looked at and counted once.
            let_in: set[Scope | None] = request.scope.setdefault(_LET_IN, set())
            if scope in let_in:
                return
            key = self._key(request)
            if scope is not None and scope not in key.scopes:
                raise InsufficientScope(scope=scope)
            if scope == "infer":
                self._limits.begin(key.key_id)
                at_end(request, partial(self._limits.end, key.key_id))
            elif scope is None:
                self._limits.count(key.key_id)
            request.state.owner = key.key_id
            let_in.add(scope)

        return Depends(check)

    def _key(self, request: Request) -> ApiKey:
        if not self._keys:
            if not (self._allows_anonymous or _is_local(request.scope)):
                raise AnonymousRefused
            return _ANYBODY
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(credentials.strip().encode("utf-8", "surrogateescape")).digest()
        # All are compared, so that the time tells nothing about which one it is.
        found = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]
        if scheme.lower() != "bearer" or not found:
            raise Unauthenticated
        return found[0]


def owner_of(request: Request) -> str:
    """Id of the key that a request came with; empty where the server has none."""
    owner: str = request.state.owner
    return owner


def _is_local(scope: AsgiScope) -> bool:
    """Whether the address that the request came to is one that only this machine can reach.

    ``inferapi serve`` looks at what it binds before it starts; this is for other ASGI servers, which bind what they
    like.
    """
    server = scope.get("server")
    if server is None:
        return False
    host, port = server
    if port is None:  # the path of a socket in the file system
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback

"""Who may do what: API keys and their scopes. Every router but health asks here; nothing is decided by a path."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import Depends
from fastapi.security import HTTPBearer
from starlette.requests import Request

from inferapi.domain.errors import InsufficientScope, Unauthenticated

Scope = Literal["infer", "admin"]

_BEARER = HTTPBearer(auto_error=False, description="An API key, where the server has keys.")  # for the manual alone


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


class Access:
    """Lets requests in that carry a key with the scope that a route needs; all of them where there are no keys."""

    def __init__(self, keys: Sequence[ApiKey]) -> None:
        self._keys = tuple(keys)

    def needs(self, scope: Scope | None) -> Any:
        """A dependency for a router or a route: with ``None`` any valid key will do."""

        async def check(request: Request, _: Any = Depends(_BEARER)) -> None:
            if not self._keys:
                request.state.owner = ""
                return
            key = self._key(request.headers.get("authorization", ""))
            if scope is not None and scope not in key.scopes:
                raise InsufficientScope(scope=scope)
            request.state.owner = key.key_id

        return Depends(check)

    def _key(self, authorization: str) -> ApiKey:
        scheme, _, credentials = authorization.partition(" ")
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

"""Who sent a request, as an address that may be logged."""

from __future__ import annotations

import ipaddress

from starlette.types import Scope


def client_address(scope: Scope) -> str:
    """The address of the connection, or the one that a trusted proxy names; ``-`` where there is none.

    A proxy passes on what it was told: anything that is no IP address is not repeated, nor is an IPv6 zone, which may
    be any text.
    """
    client = scope.get("client")
    try:
        return str(ipaddress.ip_address(client[0])).partition("%")[0] if client else "-"
    except ValueError:
        return "-"

"""Requests that wait for a model: each with a deadline, and not too many of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from inferapi.application.policy import ModelKey
from inferapi.application.residents import Resident
from inferapi.domain.errors import InferapiError


@dataclass(slots=True, eq=False)
class Waiter:
    """A request without a lease yet.

    Attributes:
        key: the model it names; ``None`` for whichever is current.
        granted: the model, its lease counted already; or why there is none.
    """

    key: ModelKey | None
    since_s: float
    deadline_s: float
    granted: asyncio.Future[Resident] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def grant(self, resident: Resident) -> None:
        """Count the lease and hand the model over, in one step."""
        resident.leases += 1
        self.granted.set_result(resident)

    def refuse(self, error: InferapiError) -> None:
        """Tell it why not."""
        self.granted.set_exception(error)


class WaitingRoom:
    """In order of arrival. Whoever was granted, refused or left is in it no more."""

    def __init__(self) -> None:
        self._waiters: list[Waiter] = []

    def __iter__(self) -> Iterator[Waiter]:
        """Those who still wait."""
        self._waiters = [waiter for waiter in self._waiters if not waiter.granted.done()]
        return iter(tuple(self._waiters))

    def enter(self, waiter: Waiter) -> None:
        """Begin to wait."""
        self._waiters.append(waiter)

    def refuse_all(self, error_of: type[InferapiError]) -> None:
        """Send everybody away."""
        for waiter in self:
            waiter.refuse(error_of())

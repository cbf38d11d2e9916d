"""One change at a time: an operation runs in a task of its own, so that a client that leaves takes nothing along."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from inferapi.application.policy import ModelKey
from inferapi.domain.errors import InferapiError, ModelLoading, OperationInProgress, ShuttingDown
from inferapi.domain.model import ModelState
from inferapi.domain.ports import Clock

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Operation:
    """A change that is under way.

    Attributes:
        implicit: begun for a request, which then shares its failure, or by the clock; nobody asked for it by
            name, so what is asked for waits for its end.
        stage: where the model is meanwhile.
    """

    name: str
    key: ModelKey
    implicit: bool
    stage: ModelState = ModelState.RESOLVING
    task: asyncio.Task[Any] = field(init=False)


Work = Callable[[Operation], Awaitable[Any]]


class Operations:
    """At most one operation; ``ended`` is called after each."""

    def __init__(self, clock: Clock, ended: Callable[[], None]) -> None:
        self._clock = clock
        self._ended = ended
        self.current: Operation | None = None
        self.is_closed = False

    def begin(self, name: str, key: ModelKey, work: Work, *, implicit: bool = False) -> Operation:
        """Start one; the caller has seen that none is running."""
        operation = self.current = Operation(name, key, implicit)
        operation.task = asyncio.create_task(self._run(operation, work), name=name)
        # Everybody may have left by the end: then nobody else asks what became of it.
        operation.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return operation

    async def join(self, name: str, key: ModelKey, work: Work) -> Any:
        """Start one, or wait for the same one that runs already; its result.

        Raises:
            OperationInProgress: another one runs.
            ShuttingDown: the server ends.
        """
        while self.current is not None and self.current.implicit:
            await asyncio.wait({self.current.task})
        if self.is_closed:
            raise ShuttingDown
        operation = self.current
        if operation is None:
            operation = self.begin(name, key, work)
        elif operation.name != name or operation.key != key:
            raise OperationInProgress(operation=operation.name)
        try:
            return await asyncio.shield(operation.task)
        except asyncio.CancelledError:
            if operation.task.cancelled():  # not the caller, but the server ends
                raise ShuttingDown from None
            raise

    async def wait(self, operation: Operation, deadline_s: float) -> None:
        """Wait for its end.

        Raises:
            ModelLoading: it did not end in time.
            InferapiError: it failed, and it was begun for the likes of the caller.
        """
        timer = asyncio.ensure_future(self._clock.sleep(max(deadline_s - self._clock.monotonic_s(), 0.0)))
        try:
            await asyncio.wait({operation.task, timer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
        if not operation.task.done():
            raise ModelLoading(model=str(operation.key.ref))
        if operation.implicit and not operation.task.cancelled() and (error := operation.task.exception()):
            raise error

    def close(self) -> None:
        """Let nobody begin another."""
        self.is_closed = True

    async def aclose(self) -> None:
        """End the running one, wherever it is."""
        self.close()
        if self.current is not None:
            task = self.current.task
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self, operation: Operation, work: Work) -> Any:
        try:
            return await work(operation)
        except InferapiError as error:
            log.warning("%s failed: %s", operation.name, error.message)
            raise
        finally:
            self.current = None
            self._ended()

"""A thread that works through messages, owners in turns, so that a long one delays no step."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, TypeVar

from inferapi.logs import on_behalf_of
from inferapi.worker.inbox import FairInbox
from inferapi.worker.messages import Embed, Generate

log = logging.getLogger(__name__)

M = TypeVar("M", Embed, Generate)
R = TypeVar("R")


class MessageThread(ABC, Generic[M, R]):
    """Messages in, one result each out.

    Args:
        name: the thread's.
        deliver: takes a result, in this thread.
        on_end: told should the thread ever end: nothing would be encoded any more.
    """

    def __init__(self, name: str, *, deliver: Callable[[R], None], on_end: Callable[[], None]) -> None:
        self._name = name
        self._deliver = deliver
        self._on_end = on_end
        self._waiting: FairInbox[M] = FairInbox()
        self._pending: set[int] = set()
        self._cancelled: set[int] = set()

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name=self._name, daemon=True).start()

    def put(self, message: M) -> None:
        """Encode it when its turn comes; for the reader thread."""
        self._pending.add(message.request_id)
        self._waiting.put(message)

    def cancel(self, request_id: int) -> None:
        """Nobody waits for it any more; for the reader thread. Its result comes all the same, as soon as can be."""
        if request_id in self._pending:
            self._cancelled.add(request_id)

    def displaced_by(self, owner: str) -> int | None:
        """Drop the last one of the owner that has the most waiting, for a newcomer; for the reader thread.

        Returns its request's id, or ``None`` where it is the newcomer that has to go.
        """
        message = self._waiting.displaced_by(owner)
        if message is None:
            return None
        self._pending.discard(message.request_id)
        self._cancelled.discard(message.request_id)
        return message.request_id

    @abstractmethod
    def _encoded(self, message: M) -> R:
        """The result; it looks whether it is cancelled, and raises nothing."""

    def _run(self) -> None:
        try:
            while True:
                message = self._waiting.get()
                with on_behalf_of(message.origin):
                    self._deliver(self._encoded(message))
                self._pending.discard(message.request_id)
                self._cancelled.discard(message.request_id)
        except BaseException:
            log.exception("the thread %s ended", self._name)
            raise
        finally:
            self._on_end()

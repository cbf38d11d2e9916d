"""Python code that another thread can break off: for chat templates, which are programs of strangers."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")

_AGAIN_S = 2.0  # after which a call that went on all the same is interrupted once more
_DEAF_S = 5.0  # after which it is known to ignore interrupts


class Interrupted(BaseException):
    """The call was broken off. No ``Exception``: nothing on the way may catch it."""


class Interruptible:
    """Runs one call at a time, in the thread that asks for it, until it ends, is interrupted or is overdue.

    An interrupt is CPython's asynchronous exception (``PyThreadState_SetAsyncExc``). It is raised between two
    bytecodes, so a loop in Python ends at once, but one call into C ends first. While such a call keeps the
    interpreter's lock, not even ``watch`` runs, and only whoever misses this process's beats can end it.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._state = threading.Lock()  # a bare lock: no bytecode lies between taking it and its ``with`` block
        self._thread_id: int | None = None  # of the call that runs
        self._name: object = None
        self._deadline_s = 0.0
        self._interrupted_s: list[float] = []

    def run(self, name: object, call: Callable[[], _T], deadline_s: float) -> _T:
        """The call's result; ``name`` is what ``interrupt`` knows it by.

        Raises:
            Interrupted: it was broken off, or its deadline on the clock passed.
        """
        try:
            try:
                with self._state:
                    self._thread_id, self._deadline_s = threading.get_ident(), deadline_s
                    self._name, self._interrupted_s = name, []
                return call()
            finally:
                self._leave()
        except Interrupted:
            self._leave()  # the exception may have hit the line above, and it hits but once
            raise

    def interrupt(self, name: object) -> None:
        """Break off the call of that name, if it runs."""
        with self._state:
            if self._thread_id is not None and self._name == name and not self._interrupted_s:
                self._raise(self._thread_id)

    def watch(self) -> bool:
        """To be called now and then, by another thread: interrupts a call that is overdue.

        Returns whether it ignored that for so long that it will not end.
        """
        now_s = self._now_s()
        with self._state:
            if self._thread_id is None:
                return False
            if not self._interrupted_s:
                if now_s >= self._deadline_s:
                    self._raise(self._thread_id)
                return False
            if len(self._interrupted_s) == 1 and now_s >= self._interrupted_s[0] + _AGAIN_S:
                self._raise(self._thread_id)  # somebody swallowed the first one: a finalizer may
            return now_s >= self._interrupted_s[0] + _DEAF_S

    def _raise(self, thread_id: int) -> None:
        self._interrupted_s.append(self._now_s())
        _set_asynchronous(thread_id, Interrupted)

    def _leave(self) -> None:
        """No interrupt comes after this, and none is left pending."""
        with self._state:
            thread_id, self._thread_id = self._thread_id, None
            was_interrupted = bool(self._interrupted_s)
        if thread_id is not None and was_interrupted:
            _absorb(thread_id)


def _set_asynchronous(thread_id: int, exception: type[BaseException]) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread_id), ctypes.py_object(exception))


def _absorb(thread_id: int) -> None:
    """Let a pending interrupt of this thread hit here, where it does no harm; if there is none, one of our own.

    Taking it back with NULL would leave CPython 3.11's evaluation loop alarmed for good: slower, and under a tracer
    it never gets on.
    """
    try:
        _set_asynchronous(thread_id, Interrupted)
        while True:
            pass
    except Interrupted:
        return

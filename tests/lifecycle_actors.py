"""Operators and clients of the lifecycle's state machine."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from fakes import ScriptedEngine
from inferapi.application.lifecycle import ModelLifecycle
from inferapi.domain.errors import GenerationAborted
from inferapi.domain.model import ModelRef
from inferapi.domain.ports import TextEngine


def watched(work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
    """A task whose error is looked at later, or never if an earlier check fails."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task


class Operation:
    """What an operator asked for, and the models that it may cut off at the drain deadline."""

    def __init__(self, kind: str, name: str | None) -> None:
        self.kind = kind
        self.name = name
        self.may_cut: set[str] = set()
        self.began_s = 0.0
        self.task: asyncio.Task[Any]

    @property
    def is_over(self) -> bool:
        """Its caller was answered. One that left does not know how it goes on."""
        return self.task.done() and not self.task.cancelled()


class Request:
    """What a client asked for: it holds its lease until it is told to finish, or its engine is gone."""

    def __init__(self, name: str | None, began_s: float, crashed: list[ScriptedEngine]) -> None:
        self.name = name
        self.crashed = crashed
        self.engine: TextEngine | None = None
        self.finish = asyncio.Event()
        self.began_s = began_s
        self.task: asyncio.Task[None]

    @property
    def is_waiting(self) -> bool:
        return self.engine is None and not self.task.done()

    @property
    def is_held(self) -> bool:
        return self.engine is not None and not self.task.done()

    async def run(self, lifecycle: ModelLifecycle) -> None:
        async with lifecycle.lease(ModelRef(self.name) if self.name else None) as engine:
            self.engine = engine
            if engine.is_closed and engine not in self.crashed:
                raise AssertionError("a lease of an engine that was ended")
            waits = [asyncio.ensure_future(self.finish.wait()), asyncio.ensure_future(engine.wait_closed())]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            if not self.finish.is_set():
                raise GenerationAborted(reason="it was unloaded")

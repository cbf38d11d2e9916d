"""Loads under way: one a model, each in a task of its own, so that a client that leaves takes nothing along."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import TypeVar

from inferapi.application.policy import ModelKey
from inferapi.application.residents import Resident, checked
from inferapi.domain.errors import HubTimeout, LoadStalled
from inferapi.domain.model import FitReport, ModelProfile
from inferapi.domain.ports import Clock
from inferapi.domain.states import LoadProgress, ModelState

T = TypeVar("T")
Listener = Callable[[LoadProgress], None]

_ENDS = {ModelState.FAILED, ModelState.CANCELLED}
_HUB_STAGES = {ModelState.RESOLVING, ModelState.DOWNLOADING}


class LoadJob:
    """One load, from the first wish to the model in memory.

    Args:
        load_s: how long its worker took the last time, if there was one.

    Attributes:
        explicit: an operator asked for it; otherwise a request did, or a failed change brings a model back.
        replaces: the model that goes when this one comes (``/change_model``).
        profile, path: once they are known.
        victims: who makes room, already told so, when it gets its turn.
        turn: set when it may use the device: one load at a time does.
        patience_s: how long those who make room may take about it.
        displaced: who left for this load alone; they are back if it fails.
        ended_in: the stage in which it failed or was cancelled.
    """

    def __init__(self, key: ModelKey, clock: Clock, *, explicit: bool, load_s: float | None) -> None:
        self.key = key
        self.explicit = explicit
        self.replaces: ModelKey | None = None
        self.profile: ModelProfile | None = None
        self.path: str | None = None
        self.report: FitReport | None = None
        self.victims: list[Resident] = []
        self.turn = asyncio.Event()
        self.patience_s = 0.0
        self.displaced: list[Resident] = []
        self.ended_in: ModelState | None = None
        self._is_given_up = False
        self.wanted_s = clock.monotonic_s()
        self.task: asyncio.Task[Resident]
        self.state = ModelState.QUEUED
        self._clock = clock
        self._load_s = load_s
        self._loading_at_s: float | None = None
        self._began_s = self._moved_s = clock.monotonic_s()
        self._bytes = (0, 0)
        self._listeners: list[Listener] = []

    @property
    def name(self) -> str:
        """What is going on, for people."""
        return f"changing to {self.key.ref}" if self.replaces else f"loading {self.key.ref}"

    @property
    def elapsed_s(self) -> float:
        """Since it was asked for."""
        return self._clock.monotonic_s() - self._began_s

    @property
    def is_over(self) -> bool:
        """It was given up or has failed; what it does now is to clean up behind itself, undisturbed."""
        return self._is_given_up or self.state in _ENDS

    def ends(self, state: ModelState) -> None:
        """It has failed or was cancelled, as everybody may see; once is enough."""
        if self.state not in _ENDS:
            self.ended_in = self.state
            self.enter(state)

    def enter(self, state: ModelState) -> None:
        """Go on to the next stage.

        Raises:
            IllegalTransitionError: it cannot follow this one.
        """
        self.state = checked(self.state, state)
        self._bytes = (0, 0)
        if state is ModelState.LOADING:
            self._loading_at_s = self.elapsed_s
        self._tell()

    def tell(self, stage: ModelState, done_bytes: int, total_bytes: int) -> None:
        """A ``Report``: how far the stage is. What comes late, from an earlier stage, is not heard."""
        if stage is ModelState.WARMING and self.state is ModelState.LOADING:
            self.enter(stage)
        elif stage is self.state and (done_bytes, total_bytes) != self._bytes:
            self._bytes = (done_bytes, total_bytes)
            self._tell()

    def progress(self) -> LoadProgress:
        """How far it is."""
        done_bytes, total_bytes = self._bytes
        elapsed_s, expected_s = self.elapsed_s, self._expected_s()
        return LoadProgress(
            str(self.key.ref),
            self.state,
            done_bytes,
            total_bytes,
            elapsed_s=round(elapsed_s, 3),
            expected_s=None if expected_s is None else round(expected_s, 3),
        )

    def _expected_s(self) -> float | None:
        done_bytes, total_bytes = self._bytes
        if self.state is ModelState.DOWNLOADING and done_bytes:
            return self.elapsed_s * total_bytes / done_bytes + (self._load_s or 0.0)
        if self._load_s is None:
            return None
        return (self.elapsed_s if self._loading_at_s is None else self._loading_at_s) + self._load_s

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Tell the listener of every step, beginning with this one; returns how to stop."""
        self._listeners.append(listener)
        listener(self.progress())
        return lambda: self._listeners.remove(listener)

    def displace(self, residents: Iterable[Resident]) -> None:
        """These must go; who was about to leave anyway does not come back for this load's failure."""
        for resident in residents:
            if resident.leaves():
                self.displaced.append(resident)

    async def unless_stalled(self, work: Awaitable[T], stall_timeout_s: float) -> T:
        """The result of one stage's work, given up when nothing moved for so long.

        Raises:
            HubTimeout, LoadStalled: it was given up.
        """
        self._moved_s = self._clock.monotonic_s()
        working = asyncio.ensure_future(work)
        try:
            while not working.done():
                left_s = self._moved_s + stall_timeout_s - self._clock.monotonic_s()
                if left_s <= 0:
                    model = str(self.key.ref)
                    if self.state in _HUB_STAGES:
                        raise HubTimeout(model=model)
                    raise LoadStalled(model=model, timeout_s=stall_timeout_s, stage=self.state.value)
                sleeping = asyncio.ensure_future(self._clock.sleep(left_s))
                try:
                    await asyncio.wait({working, sleeping}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    sleeping.cancel()
            return working.result()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)  # what it took is given back before anybody goes on

    def cancel(self) -> None:
        """Give it up, unless it is over anyway."""
        if not self.is_over:
            self._is_given_up = True
            self.task.cancel()

    def _tell(self) -> None:
        self._moved_s = self._clock.monotonic_s()
        progress = self.progress()
        for listener in list(self._listeners):
            listener(progress)


class Jobs:
    """All loads under way, one a model."""

    def __init__(self) -> None:
        self._by_key: dict[ModelKey, LoadJob] = {}
        self.in_turn: LoadJob | None = None

    def __iter__(self) -> Iterator[LoadJob]:
        """In order of their beginning."""
        return iter(tuple(self._by_key.values()))

    def find(self, key: ModelKey | None) -> LoadJob | None:
        """The one for that model."""
        return self._by_key.get(key) if key else None

    def add(self, job: LoadJob) -> None:
        """Begin."""
        assert job.key not in self._by_key, "never two loads of one model"  # noqa: S101 - our own invariant
        self._by_key[job.key] = job

    def discard(self, job: LoadJob) -> None:
        """It ended."""
        if self._by_key.get(job.key) is job:
            del self._by_key[job.key]
        if self.in_turn is job:
            self.in_turn = None

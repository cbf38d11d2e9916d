"""The ports: what the application needs from outside, each a contract.

The tests' ``contracts.py`` holds one contract class a port; fakes and adapters both pass it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from inferapi.domain.chat import Lease, OpenTurn, Session, SessionChange, SessionPage, SessionRef
from inferapi.domain.generation import Chunk, EmbeddingRequest, Embeddings, GenerationRequest
from inferapi.domain.model import Device, EngineFacts, EngineLoad, EngineSpec, ModelProfile, ModelRef
from inferapi.domain.states import Report


class Clock(Protocol):
    """Time. Durations come from ``monotonic_s`` alone."""

    def monotonic_s(self) -> float:
        """Seconds on the system's monotonic clock, the same in every process of the machine."""
        ...

    def wall_s(self) -> float:
        """Seconds since the epoch."""
        ...

    async def sleep(self, duration_s: float) -> None:
        """Wait; cancelling ends it at once."""
        ...


class GpuProbe(Protocol):
    """What memory there is for models: GPUs where there are any, the host's otherwise."""

    def device(self) -> Device:
        """Read the figures now; at most some milliseconds, so it may run on the event loop."""
        ...


class ModelRepository(Protocol):
    """Models by name: what they are, and their files on this machine."""

    async def profile(self, ref: ModelRef) -> ModelProfile:
        """Learn what a model is, from its config and its weights' headers; downloads no weights.

        Raises:
            ModelNotFound, ModelGated, HubUnavailable, HubTimeout: it cannot be had.
            ModelInvalid, UnsafeWeights, RemoteCodeRefused: it must not be served.
            InsufficientStorage, ModelLoadFailed: its config cannot be kept, or no process be started.
        """
        ...

    async def local(self) -> dict[ModelRef, float]:
        """The models that lie on this machine by the operator's choice, and when they came, seconds since the epoch.

        They are looked at from outside: one that is listed may be refused by ``profile``. What cannot be read is left
        out.
        """
        ...

    async def fetch(self, profile: ModelProfile, report: Report) -> str:
        """Have the files of exactly that commit on this machine and return their folder.

        ``report`` hears of the bytes as they arrive, on the event loop. Cancelling stops a download.

        Raises:
            InsufficientStorage: the disk is full.
            DownloadIncomplete: the hub broke off, again and again; files that came whole are kept for the next try.
            ModelNotFound, ModelGated, HubUnavailable, HubTimeout: as ``profile``.
            ModelInvalid, UnsafeWeights, RemoteCodeRefused: what came must not be served.
            ModelLoadFailed: the hub's cache cannot be written, or no process be started.
        """
        ...


class TextEngine(Protocol):
    """One loaded model, ready to turn prompts into text."""

    @property
    def facts(self) -> EngineFacts:
        """What the model became when it was loaded."""
        ...

    @property
    def load(self) -> EngineLoad:
        """How busy it is and what it takes, as last heard: at most some seconds ago."""
        ...

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk]:
        """Yield text as it is decoded; the last chunk alone carries ``finish``.

        Closing the generator, or cancelling, frees its slot within one decode step.

        Raises:
            ContextWindowExceeded: prompt tokens + ``max_new_tokens`` do not fit.
            InvalidRequest: the template refuses the messages or their tools, or the constraint cannot be kept.
            QueueFull: every slot is taken and the waiting queue is full; or the request waited there, and another
                owner, who has fewer waiting, needed its place.
            OutOfMemory: this request found no memory; the engine lives.
            GenerationTimeout: the request's deadline passed.
            GenerationAborted: ``aclose`` took the engine away meanwhile.
            ModelCrashed: the engine died, or was ended for not giving a sign of life; every later call raises it too.
        """
        ...

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """Turn texts into vectors of length 1. Cancelling drops the work.

        Raises:
            EmbeddingsRefused: this model cannot.
            ContextWindowExceeded: a text is longer than the model's context window.
            QueueFull, OutOfMemory, GenerationTimeout, GenerationAborted, ModelCrashed: as ``generate``.
        """
        ...

    @property
    def is_closed(self) -> bool:
        """Whether the engine is gone."""
        ...

    async def wait_closed(self) -> None:
        """Return once the engine is gone, by ``aclose`` or by a crash."""
        ...

    async def aclose(self) -> None:
        """End it and wait until its memory is back. Idempotent."""
        ...


class EngineLauncher(Protocol):
    """Starts engines."""

    async def start(self) -> None:
        """Prepare, so that the first ``launch`` need not. Optional, idempotent."""
        ...

    async def launch(self, spec: EngineSpec, report: Report) -> TextEngine:
        """Load a model. Cancelling ends the loading and frees what it took.

        ``report`` hears of the weights' bytes as they are read (``LOADING``), then of ``WARMING``.

        Raises:
            ModelInvalid: the files cannot be loaded.
            OutOfMemory: memory ran out while loading.
            ModelCrashed: the process died, or was ended for not giving a sign of life.
            ModelLoadFailed: anything else.
        """
        ...

    async def aclose(self) -> None:
        """End every engine that is still there."""
        ...


class SessionStore(Protocol):
    """Sessions, and the system prompt that new ones get.

    Each method is one transaction, and answers within 3 s. Every session has a sliding time to live: it is forgotten
    so long after its last turn began or its last write. Who waits for whom is not decided here.

    Every method may raise ``SessionStoreUnavailable``: the store does not answer, cannot be written, or is full.
    Reading a session may raise ``SessionUnreadable``: what is stored under its id is damaged; only ``delete`` works.
    """

    async def begin(self, ref: SessionRef, holder: str, lease_s: float) -> OpenTurn | None:
        """Take the session's lease for so long, and read the session; ``None`` if somebody else has the lease.

        After an error the lease may have been taken all the same: ``end`` it.
        """
        ...

    async def renew(self, lease: Lease, lease_s: float) -> bool:
        """Have the lease for so long from now; false if it is lost: it ran out, or the session was deleted."""
        ...

    async def end(self, ref: SessionRef, holder: str) -> None:
        """Give the lease back, if ``holder`` has it."""
        ...

    async def commit(self, lease: Lease, before: Session, change: SessionChange, at_s: float) -> Session:
        """Write ``change`` whole, if the lease is still held and the stored version that of ``before``; end the lease.

        Version 0 of ``before`` makes the session. ``at_s`` is the wall-clock time of the write.
        Returns ``before.changed(change, at_s)``.

        Raises:
            HistoryNotSaved: the lease was lost, or the session changed or was deleted meanwhile.
        """
        ...

    async def create(self, session: Session) -> None:
        """Store a new session whole.

        Raises:
            SessionExists: its id is taken, or somebody has its lease.
        """
        ...

    async def get(self, ref: SessionRef) -> Session | None:
        """The session, or ``None`` if it is unknown or expired. Does not count as use."""
        ...

    async def delete(self, ref: SessionRef) -> bool:
        """Forget it, whatever is stored there, and take its lease away: a turn that is running is not stored.

        Returns whether there was a session or a lease.
        """
        ...

    async def page(self, owner: str, limit: int, cursor: str | None) -> SessionPage:
        """Up to ``limit`` sessions of an owner, the last used first, after ``cursor``. Unreadable ones are left out.

        A session that is used while somebody pages moves to the front; none is told twice.

        Raises:
            InvalidRequest: ``cursor`` is none that ``page`` gave.
        """
        ...

    async def system_prompt(self) -> str | None:
        """What ``set_system_prompt`` stored last, if anything."""
        ...

    async def set_system_prompt(self, prompt: str) -> None:
        """Keep the prompt for sessions that start from now on."""
        ...

    async def ping(self) -> None:
        """Answer if the store can be reached at all."""
        ...

    async def aclose(self) -> None:
        """Let go of files and connections; later calls may raise ``SessionStoreUnavailable``. Idempotent."""
        ...

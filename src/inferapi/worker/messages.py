"""Everything that crosses the process border, and how: msgpack in length-prefixed frames, nothing pickled."""

from __future__ import annotations

import struct

import msgspec

from inferapi.domain.errors import Fact, InferapiError, error_named
from inferapi.domain.generation import Chunk, EmbeddingRequest, GenerationRequest
from inferapi.domain.model import EngineFacts, EngineLoad, EngineSpec
from inferapi.domain.states import ModelState
from inferapi.domain.telemetry import StepTally
from inferapi.logs import Origin

_LENGTH = struct.Struct("!I")
HEADER_BYTES = _LENGTH.size

NOT_FORKED_STATUS = 71
"""The exit status of a worker that never was: the operating system gave no process."""

NO_MEMORY_STATUS = 72
"""The exit status of a worker that found no memory, not even to say so."""


class Message(msgspec.Struct, frozen=True, tag=True):
    """A frame's content; the tag is the class's name."""


# API process to fork server


class Fork(Message, frozen=True):
    """Fork a worker; its end of the socket pair comes along as a file descriptor."""

    worker_id: int


class Kill(Message, frozen=True):
    """End a worker at once. Only its parent may: it alone knows that the process id is still that worker's."""

    worker_id: int


# fork server to API process


class Forked(Message, frozen=True):
    """A worker's process is there."""

    worker_id: int


class Exited(Message, frozen=True):
    """A worker has ended and all its memory is back. ``status`` is negative for a signal."""

    worker_id: int
    status: int


# API process to worker


class Load(Message, frozen=True):
    """Load a model: the first frame of a worker's life."""

    spec: EngineSpec


class Generate(Message, frozen=True):
    """Start an answer. ``origin`` is for the worker's log."""

    request_id: int
    request: GenerationRequest
    origin: Origin = (None, None)

    @property
    def salt(self) -> str:
        """Whose it is."""
        return self.request.salt


class Embed(Message, frozen=True):
    """Turn texts into vectors. ``origin`` is for the worker's log."""

    request_id: int
    request: EmbeddingRequest
    origin: Origin = (None, None)

    @property
    def salt(self) -> str:
        """Whose it is."""
        return self.request.salt


class Cancel(Message, frozen=True):
    """Nobody reads this answer, or waits for these vectors, any more."""

    request_id: int


# worker to API process


class Failure(Message, frozen=True):
    """An error of the domain, by name and facts."""

    error: str
    facts: dict[str, Fact]

    @classmethod
    def of(cls, error: InferapiError) -> Failure:
        """Pack an error."""
        return cls(type(error).__name__, error.facts)

    def unpack(self) -> InferapiError:
        """The error again."""
        return error_named(self.error, self.facts)


class Beat(Message, frozen=True):
    """A sign of life, every second, and the memory that the worker takes."""

    memory_bytes: int


class Progress(Message, frozen=True):
    """How far the load is; ``total_bytes`` is 0 while unknown."""

    stage: ModelState
    done_bytes: int
    total_bytes: int


class Loaded(Message, frozen=True):
    """The model is ready."""

    facts: EngineFacts


class LoadFailed(Message, frozen=True):
    """It is not, and the worker ends."""

    failure: Failure


class StepDone(Message, frozen=True):
    """What one step said: to each request by its id, text or a failure; and what was computed since the last one."""

    load: EngineLoad
    chunks: list[tuple[int, Chunk]]
    failures: list[tuple[int, Failure]]
    tally: StepTally | None = None


class Embedded(Message, frozen=True):
    """The vector of a request's next text: float32, little-endian; and how many tokens the text has."""

    request_id: int
    vector: bytes
    prompt_tokens: int


ToForkServer = Fork | Kill
FromForkServer = Forked | Exited
ToWorker = Load | Generate | Embed | Cancel
FromWorker = Beat | Progress | Loaded | LoadFailed | StepDone | Embedded

_encoder = msgspec.msgpack.Encoder()


def encode(message: Message) -> bytes:
    """The message without a header, for a socket that keeps packets apart."""
    return _encoder.encode(message)


def frame(message: Message) -> bytes:
    """The message with its length in front, for a stream."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def body_bytes(header: bytes) -> int:
    """How many bytes follow a header."""
    length: int = _LENGTH.unpack(header)[0]
    return length

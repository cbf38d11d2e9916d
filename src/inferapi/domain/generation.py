"""What goes into a generation and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from inferapi.domain.chat import Message


@dataclass(frozen=True, slots=True)
class Prompt:
    """Raw ``text`` to continue, or ``messages`` to render with the model's chat template.

    Attributes:
        drop_oldest_turns: leave out whole turns, oldest first, until the messages fit the context window.
    """

    text: str | None = None
    messages: tuple[Message, ...] = ()
    drop_oldest_turns: bool = False


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen, and when to stop.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches this; 1 keeps all.
        min_p: keep tokens at least this likely relative to the likeliest; 0 keeps all.
        repetition_penalty: divides the logits of tokens seen in prompt or answer; 1 changes nothing.
        seed: makes sampling repeatable, whoever else is in the batch.
        stop: strings that end the answer; they are not part of it.
    """

    max_new_tokens: int = 100
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    min_new_tokens: int = 0
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One answer asked of an engine.

    Attributes:
        arrived_s: when the client's request arrived, on the system's monotonic clock; timings count from it.
        deadline_s: when to give up, on the same clock.
        affinity: requests with the same affinity are likely to share a prefix (a session id).
        salt: whose request it is. Keys and values that were computed for one salt are never reused for another:
            the time that an answer takes would tell what others asked.
    """

    prompt: Prompt
    sampling: SamplingParams
    arrived_s: float
    deadline_s: float
    affinity: str | None = None
    salt: str = ""


class FinishReason(StrEnum):
    """Why an answer ended."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted.

    Attributes:
        dropped_turns: were left out to fit the context window.
        cached_tokens: of the prompt, those whose keys and values were in the cache already.
    """

    prompt_tokens: int
    completion_tokens: int
    dropped_turns: int = 0
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one request went, all in seconds.

    ``time_to_first_token_s`` counts from arrival, waiting for a model and for a slot included.
    """

    queue_s: float
    time_to_first_token_s: float
    inter_token_latency_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class Finish:
    """The end of an answer."""

    reason: FinishReason
    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. Only the last one carries ``finish``, and may have no text."""

    text: str
    finish: Finish | None = field(default=None)

"""What goes into a generation and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from inferapi.domain.chat import Message


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a model may ask to be called.

    Attributes:
        parameters: a JSON schema, as text.
        is_strict: its arguments keep to that schema, even where the model is free to call it or not.
    """

    name: str
    description: str
    parameters: str
    is_strict: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """Raw ``text`` to continue, or ``messages`` to render with the model's chat template.

    Attributes:
        drop_oldest_turns: leave out whole turns, oldest first, until the messages fit the context window.
        tools: what the template is told of; a template that knows no tools refuses them.
    """

    text: str | None = None
    messages: tuple[Message, ...] = ()
    drop_oldest_turns: bool = False
    tools: tuple[Tool, ...] = ()


class ConstraintKind(StrEnum):
    """The languages that a constraint can be written in."""

    JSON_SCHEMA = "json_schema"
    GRAMMAR = "grammar"


@dataclass(frozen=True, slots=True)
class Constraint:
    """What an answer must look like: only tokens that lead there are chosen.

    Attributes:
        definition: the schema as JSON text, ``{"type": "object"}`` for any object; or a grammar in llguidance's Lark.
    """

    kind: ConstraintKind
    definition: str


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
        presence_penalty: taken once from the logits of tokens that are in the answer already (not in the prompt).
        frequency_penalty: taken for each time that they are.
        logit_bias: token ids, and what is added to their logits before anything else.
        top_logprobs: tell each token's log-probability, and those of so many likeliest ones; none tells nothing.
            They are of the distribution that is sampled from at temperature 1, before any truncation.
        constraint: what the answer must look like.
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
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    top_logprobs: int | None = None
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts to be turned into vectors, each by itself.

    Attributes:
        deadline_s: when to give up, on the system's monotonic clock.
        salt: whose request it is; the owners of texts take turns.
    """

    texts: tuple[str, ...]
    arrived_s: float
    deadline_s: float
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Embeddings:
    """A vector for each text, in order, and the tokens of all of them."""

    vectors: tuple[tuple[float, ...], ...]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One answer asked of an engine.

    Attributes:
        arrived_s: when the client's request arrived, on the system's monotonic clock; timings count from it.
        deadline_s: when to give up, on the same clock.
        affinity: requests with the same affinity are likely to share a prefix (a session id).
        salt: whose request it is. Keys and values that were computed for one salt are never reused for another:
            the time that an answer takes would tell what others asked. Owners take turns.
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
        reasoning_tokens: of the answer, those up to the end of its reasoning, tags included.
    """

    prompt_tokens: int
    completion_tokens: int
    dropped_turns: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

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
class TokenChance:
    """A token and how likely it was: its natural log-probability.

    Attributes:
        data: its bytes; of a token that is part of a character they are no text by themselves.
    """

    token_id: int
    text: str
    data: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class ChosenToken:
    """A token of the answer, and the likeliest ones in its place, the likeliest first."""

    chance: TokenChance
    likeliest: tuple[TokenChance, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. Only the last one carries ``finish``, and may have no text.

    Attributes:
        tokens: where log-probabilities were asked for, those of the tokens whose text this piece ends with.
        completion_tokens: generated so far, those of this piece included.
    """

    text: str
    finish: Finish | None = field(default=None)
    tokens: tuple[ChosenToken, ...] = ()
    completion_tokens: int = 0

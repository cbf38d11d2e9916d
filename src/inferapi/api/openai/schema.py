"""What bodies under ``/v1`` share: bounded fields, sampling in OpenAI's terms, JSON that is kept as text."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints

from inferapi.api.openai.strictness import STREAM_OPTIONS, OpenAiBody
from inferapi.api.schema import MAX_TOKEN_COUNT, ModelName
from inferapi.domain.errors import InvalidRequest
from inferapi.domain.generation import Constraint, SamplingParams
from inferapi.domain.model import ModelRef

MAX_CHOICES = 16
MAX_STOP_STRINGS = 16
MAX_BIASES = 300
MAX_TOKEN_ID = 2**31 - 1
_MOST_BIAS = 100.0
_LEAST_TOP_P = 1e-6  # of OpenAI's 0, too: the likeliest token alone
_MOST_JSON_CHARACTERS = 65_536
_MOST_JSON_DEPTH = 64
_MOST_PARTS_IN_ALL = 4096

StopString = Annotated[str, StringConstraints(min_length=1, max_length=128)]
PlainText = Annotated[str, StringConstraints(max_length=1_000_000)]
Identifier = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


def require_few_parts(messages: Any) -> Any:
    """Messages or items as they are, before the parts of each are looked at.

    Raises:
        ValueError: they have too many parts in all.
    """
    if isinstance(messages, list):
        contents = (value for each in messages if isinstance(each, dict) for value in each.values())
        if sum(len(value) for value in contents if isinstance(value, list)) > _MOST_PARTS_IN_ALL:
            raise ValueError(f"at most {_MOST_PARTS_IN_ALL} parts in all")
    return messages


def _as_list(stop: Any) -> Any:
    stop = [stop] if isinstance(stop, str) else stop
    if isinstance(stop, list) and len(stop) > MAX_STOP_STRINGS:  # before half a million of them are looked at
        raise ValueError(f"at most {MAX_STOP_STRINGS} strings")
    return stop


def _as_pairs(biases: Any) -> Any:
    """Token ids and what is added to their logits, from an object whose keys are the ids as text."""
    if not isinstance(biases, dict) or len(biases) > MAX_BIASES:
        raise ValueError(f"an object of at most {MAX_BIASES} token ids and their biases")
    return tuple((_token_id(key), _bias(value)) for key, value in biases.items())


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) <= len(str(MAX_TOKEN_ID))) or int(key) > MAX_TOKEN_ID:
        raise ValueError("a key is no token id")
    return int(key)


def _bias(value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -_MOST_BIAS <= value <= _MOST_BIAS:  # NaN is not between them
        raise ValueError(f"a bias is no number from -{_MOST_BIAS:g} to {_MOST_BIAS:g}")
    return float(value)


def _as_json_text(value: Any) -> str:
    """A JSON object as text: nobody here but the engine looks into it."""
    if not isinstance(value, dict):
        raise ValueError("a JSON object")  # noqa: TRY004 - pydantic takes ValueError for what a client got wrong
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        text.encode()
    except (ValueError, RecursionError) as error:  # NaN, half a surrogate pair, or nested without end
        raise ValueError("a JSON object that can be written in UTF-8") from error
    if len(text) > _MOST_JSON_CHARACTERS:
        raise ValueError(f"at most {_MOST_JSON_CHARACTERS} characters of JSON")
    if _is_deeper(value, _MOST_JSON_DEPTH):
        raise ValueError(f"a JSON object of at most {_MOST_JSON_DEPTH} levels")
    return text


def _is_deeper(value: Any, most: int) -> bool:
    layer = [value]
    for _ in range(most):
        inner = (each.values() if isinstance(each, dict) else each for each in layer if isinstance(each, dict | list))
        layer = [each for values in inner for each in values]
        if not layer:
            return False
    return True


StopStrings = Annotated[
    list[StopString],
    Field(fail_fast=True),
    BeforeValidator(
        _as_list, json_schema_input_type=StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)]
    ),
]
LogitBias = Annotated[
    tuple[tuple[int, float], ...],
    BeforeValidator(
        _as_pairs,
        json_schema_input_type=Annotated[
            dict[
                Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")],
                Annotated[float, Field(ge=-_MOST_BIAS, le=_MOST_BIAS)],
            ],
            Field(max_length=MAX_BIASES),
        ],
    ),
]
JsonText = Annotated[str, BeforeValidator(_as_json_text, json_schema_input_type=dict[str, Any])]
Temperature = Annotated[float, Field(ge=0, le=2, description="0 is greedy. Default: 1.")]
TopP = Annotated[float, Field(ge=0, le=1, description="Default: 1.")]
TokenLimit = Annotated[int, Field(ge=1, le=MAX_TOKEN_COUNT)]


@dataclass(frozen=True, slots=True)
class OpenAiPolicy:
    """What the operator decided about requests under ``/v1``.

    Attributes:
        max_new_tokens: the most that one choice may have; also of requests that do not say, as far as the context
            window has room.
        lenient_params: parameters that are not supported are ignored with a warning, not refused.
    """

    max_new_tokens: int
    lenient_params: bool = False


class StreamOptions(OpenAiBody):
    """What a stream tells beside the answer."""

    tolerated = STREAM_OPTIONS

    include_usage: bool | None = Field(None, description="One more event with the usage, before the end.")


class SamplingBody(OpenAiBody):
    """How to choose tokens: OpenAI's parameters first, then what is common beside them."""

    model: ModelName = Field(description="Which model answers; it is loaded if need be.")
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="How many choices. Default: 1.")
    temperature: Temperature | None = None
    top_p: TopP | None = None
    stop: StopStrings | None = Field(None, description="Up to 16 strings that end a choice.")
    seed: int | None = Field(None, ge=-(2**63), lt=2**63, description="Choice i is drawn with seed + i.")
    logit_bias: LogitBias | None = Field(None, description="Added to the logits of these token ids: -100 to 100.")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    stream: bool | None = Field(None, description="Answer as server-sent events.")
    stream_options: StreamOptions | None = None
    top_k: int | None = Field(None, ge=-1, le=MAX_TOKEN_COUNT, description="An extension. 0 and -1 keep all tokens.")
    min_p: float | None = Field(None, ge=0, le=1, description="An extension.")
    repetition_penalty: float | None = Field(None, ge=0.01, le=10, description="An extension; 1 changes nothing.")
    min_tokens: int | None = Field(None, ge=0, le=MAX_TOKEN_COUNT, description="An extension.")
    ignore_eos: bool | None = Field(None, description="An extension.")

    def ref(self) -> ModelRef:
        """The model that is meant.

        Raises:
            ModelNameInvalid: it is no model name.
        """
        return ModelRef.parse(self.model)

    @property
    def choices(self) -> int:
        """How many answers are asked for."""
        return self.n or 1

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the usage."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def sampling(
        self,
        max_new_tokens: int | None,
        policy: OpenAiPolicy,
        *,
        limit_param: str = "max_tokens",
        top_logprobs: int | None = None,
        constraint: Constraint | None = None,
    ) -> SamplingParams:
        """The parameters for the engine; without ``max_new_tokens`` as many as the server allows.

        ``limit_param`` is what the client calls that limit.

        Raises:
            InvalidRequest: fields contradict each other, or the server's limits.
        """
        if self.stream_options is not None and not self.stream:
            raise refused("stream_options", "only beside stream")
        if max_new_tokens is not None and max_new_tokens > policy.max_new_tokens:
            raise refused(limit_param, f"at most {policy.max_new_tokens} on this server")
        limit = max_new_tokens or policy.max_new_tokens
        if (self.min_tokens or 0) > limit:
            raise refused("min_tokens", "more than the tokens that there may be")
        return SamplingParams(
            max_new_tokens=limit,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=max(self.top_k or 0, 0),
            top_p=1.0 if self.top_p is None else max(self.top_p, _LEAST_TOP_P),
            min_p=self.min_p or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            seed=self.seed,
            stop=tuple(self.stop or ()),
            min_new_tokens=self.min_tokens or 0,
            ignore_eos=bool(self.ignore_eos),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=self.logit_bias or (),
            top_logprobs=top_logprobs,
            constraint=constraint,
        )


def refused(param: str, problem: str) -> InvalidRequest:
    """What is wrong with a parameter, named twice: in the words, and as the error's ``param``."""
    return InvalidRequest(problem=f"{param}: {problem}", param=param)

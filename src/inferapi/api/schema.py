"""Request bodies that infer and chat share: every number, list and string is bounded, and numbers are strict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from inferapi.domain.errors import InvalidRequest
from inferapi.domain.generation import Finish, SamplingParams
from inferapi.domain.model import ModelRef

Text = Annotated[str, StringConstraints(min_length=1, max_length=1_000_000)]


def _not_dots(session_id: str) -> str:
    if session_id in {".", ".."}:  # clients take them for steps in a path
        raise ValueError("not . and not ..")
    return session_id


SessionId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._~-]{1,128}$"), AfterValidator(_not_dots)]
TurnId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._~-]{1,128}$")]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=256)]

MAX_TOKEN_COUNT = 1_000_000
MAX_STOP_STRINGS = 16


class Body(BaseModel):
    """A request body: unknown fields are refused, ``true`` is not 1, and there is no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class SamplingPolicy:
    """What the operator decided about sampling.

    Attributes:
        max_new_tokens: the most that one request may ask for.
        temperature: for requests that do not say.
    """

    max_new_tokens: int
    temperature: float


def _few_strings(stop: Any) -> Any:
    if isinstance(stop, list) and len(stop) > MAX_STOP_STRINGS:  # before half a million of them are looked at
        raise ValueError(f"at most {MAX_STOP_STRINGS} strings")
    return stop


class SamplingBody(Body):
    """How to choose tokens, and what to answer with."""

    temperature: float | None = Field(
        None, ge=0, le=100, description="0 is greedy. Without one: 0.7, unless the server was set otherwise."
    )
    repetition_penalty: float = Field(1.1, ge=0.01, le=10)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=MAX_TOKEN_COUNT, description="0 keeps all tokens.")
    min_p: float = Field(0.0, ge=0, le=1)
    stop: Annotated[list[StopString] | StopString | None, BeforeValidator(_few_strings)] = Field(
        None, description="Up to 16 strings that end the answer."
    )
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    min_new_tokens: int = Field(0, ge=0, le=MAX_TOKEN_COUNT)
    ignore_eos: bool = False
    stream: bool = Field(False, description="Answer as server-sent events.")
    details: bool = Field(False, description="Add usage, timings and the reason of the end.")
    model: ModelName | None = Field(
        None, description="Which model answers; it is loaded if need be. Without one: the current model."
    )

    def ref(self) -> ModelRef | None:
        """The model that is meant.

        Raises:
            ModelNameInvalid: it is no model name.
        """
        return ModelRef.parse(self.model) if self.model is not None else None

    def sampling(self, max_new_tokens: int, policy: SamplingPolicy) -> SamplingParams:
        """The parameters for the engine.

        Raises:
            InvalidRequest: a count is beyond what the server allows.
        """
        if max_new_tokens > policy.max_new_tokens:
            raise InvalidRequest(problem=f"max_new_tokens: at most {policy.max_new_tokens} on this server")
        if self.min_new_tokens > max_new_tokens:
            raise InvalidRequest(problem="min_new_tokens: more than max_new_tokens")
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParams(
            max_new_tokens=max_new_tokens,
            temperature=policy.temperature if self.temperature is None else self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop=stop,
            min_new_tokens=self.min_new_tokens,
            ignore_eos=self.ignore_eos,
        )


def details(model: str, finish: Finish) -> dict[str, Any]:
    """What ``"details": true`` adds."""
    usage = finish.usage
    return {
        "finish_reason": finish.reason,
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
            "dropped_turns": usage.dropped_turns,
            "cached_tokens": usage.cached_tokens,
        },
        "timings": finish.timings,
        "model": model,
    }

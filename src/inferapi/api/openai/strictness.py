"""Fields that are not built here: refused by name, unless they change nothing; or ignored with a warning.

A field of OpenAI's that a body does not declare is looked up in a table of what may be said in it because it means
nothing here. All else is refused: who sends a parameter relies on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic.config import JsonDict, JsonValue

from inferapi.domain.errors import InvalidRequest

_MOST_TOLD = 10
_NAME = re.compile(r"[A-Za-z0-9_]{1,64}")
_HIDDEN = "…"
_TYPES: dict[type, str] = {bool: "boolean", int: "integer", str: "string", dict: "object", list: "array"}


@dataclass(frozen=True, slots=True)
class Tolerated:
    """What may be said in a field that does nothing here; null may always be said.

    Attributes:
        reason: why it changes nothing, and, where other values are refused, what is not built.
        values: the values that may be said.
        types: any value of these types may be.
    """

    reason: str
    values: tuple[JsonValue, ...] = ()
    types: tuple[type, ...] = ()

    def allows(self, value: Any) -> bool:
        """Whether that value changes nothing. ``True`` is not 1."""
        same = any(type(value) is type(allowed) and value == allowed for allowed in self.values)
        return value is None or type(value) in self.types or same

    def json_schema(self) -> JsonDict:
        """The field as the manual describes it."""
        allowed: list[JsonValue] = [{"type": _TYPES[kind]} for kind in self.types]
        if self.values:
            allowed.append({"enum": [*self.values]})
        return {"anyOf": [*allowed, {"type": "null"}], "description": f"Does nothing here: {self.reason}."}


_LABEL = "a label of the caller's, and nothing is done with it"
_LABELS = {
    "user": Tolerated(_LABEL, types=(str,)),
    "safety_identifier": Tolerated(_LABEL, types=(str,)),
    "metadata": Tolerated("labels of stored completions, and none are stored here", types=(dict,)),
}
CHAT: Mapping[str, Tolerated] = _LABELS | {
    "store": Tolerated("chat completions are not stored; /v1/responses are", values=(False,)),
    "service_tier": Tolerated("there is one tier", values=("auto", "default")),
    "prompt_cache_key": Tolerated("prefixes are found again without it", types=(str,)),
    "prompt_cache_retention": Tolerated("prefixes stay in memory while there is room", values=("in_memory",)),
    "prompt_cache_options": Tolerated("prefixes are found again without them"),
    "modalities": Tolerated("answers are text", values=(["text"],)),
    "audio": Tolerated("answers are text"),
    "prediction": Tolerated("predicted outputs are not built"),
    "verbosity": Tolerated("models here know no such setting", values=("medium",)),
    "reasoning_effort": Tolerated("models here know no such setting"),
    "web_search_options": Tolerated("there is no search"),
    "moderation": Tolerated("there is no moderation"),
    "functions": Tolerated("tools took their place"),
    "function_call": Tolerated("tool_choice took its place"),
}
COMPLETION: Mapping[str, Tolerated] = _LABELS | {
    "best_of": Tolerated("every answer is told: n says how many", values=(1,)),
    "echo": Tolerated("the prompt is not told again", values=(False,)),
    "suffix": Tolerated("texts are continued, not filled in", values=("",)),
    "service_tier": CHAT["service_tier"],
    "prompt_cache_key": CHAT["prompt_cache_key"],
}
EMBEDDING: Mapping[str, Tolerated] = {"user": Tolerated(_LABEL, types=(str,))}
MESSAGE: Mapping[str, Tolerated] = {  # clients send back the message that they were given
    "refusal": Tolerated("models here do not mark refusals"),
    "annotations": Tolerated("they are about answers, and models do not read them", types=(list,)),
    "audio": Tolerated("messages are text"),
    "function_call": Tolerated("tool_calls took its place"),
    "reasoning_content": Tolerated("models do not read the reasoning of earlier turns", types=(str,)),
    "parsed": Tolerated("the content says it", types=(dict, list, str, int, bool)),
    "provider_specific_fields": Tolerated(
        "LiteLLM keeps there what it found beside the fields it knows", types=(dict,)
    ),
}
TOOL_CALL: Mapping[str, Tolerated] = {"index": Tolerated("the order says it", types=(int,))}
TOOL_CALL_FUNCTION: Mapping[str, Tolerated] = {"parsed_arguments": Tolerated("the arguments say it", types=(dict,))}
STREAM_OPTIONS: Mapping[str, Tolerated] = {
    "include_obfuscation": Tolerated("events are not padded", values=(False,)),
}


def _described(schema: JsonDict, model: type[BaseModel]) -> None:
    """Say in a body's schema what may be sent, and that nothing else may be."""
    schema["additionalProperties"] = False
    tolerated: Mapping[str, Tolerated] = getattr(model, "tolerated", {})
    properties = schema.setdefault("properties", {})
    if isinstance(properties, dict):
        properties.update({name: rule.json_schema() for name, rule in tolerated.items()})


class OpenAiBody(BaseModel):
    """A body, or a part of one: numbers are strict, and unknown fields are kept for ``accepted`` to judge."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, json_schema_extra=_described)

    tolerated: ClassVar[Mapping[str, Tolerated]] = {}

    def unsupported(self) -> Iterator[tuple[str, str]]:
        """Declared fields whose values are not built: their places in this body, and why not."""
        yield from ()


def accepted(body: OpenAiBody, *, lenient: bool) -> tuple[str, ...]:
    """What is wrong with the fields of ``body`` and ignored all the same, where the server is ``lenient``.

    Raises:
        InvalidRequest: a field is not supported; the fact ``param`` names the first one.
    """
    found = list(islice(_unsupported(body, ""), _MOST_TOLD))  # no more are looked for than are told
    if not found:
        return ()
    told = [f"{place}: {reason}" for place, reason in found]
    if not lenient:
        param = found[0][0]
        raise InvalidRequest(problem="; ".join(told), param=None if _HIDDEN in param else param)
    return tuple(f"{line}; it was ignored" for line in told)


def _unsupported(body: OpenAiBody, place: str) -> Iterator[tuple[str, str]]:
    """Everything in ``body`` and below it that is not supported, as places and reasons."""
    for name, value in (body.model_extra or {}).items():
        rule = body.tolerated.get(name)
        if rule is None:
            yield f"{place}{_shown(name)}", "there is no such parameter"
        elif not rule.allows(value):
            yield f"{place}{name}", f"this is not supported: {rule.reason}"
    for name, reason in body.unsupported():
        yield f"{place}{name}", reason
    for name, field in type(body).model_fields.items():
        yield from _below(getattr(body, name), f"{place}{field.alias or name}")


def _below(value: object, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, OpenAiBody):
        yield from _unsupported(value, f"{place}.")
    elif isinstance(value, list):
        yield from _of_all(value, place)


def _of_all(values: Iterable[object], place: str) -> Iterator[tuple[str, str]]:
    for number, value in enumerate(values):
        yield from _below(value, f"{place}[{number}]")


def _shown(name: str) -> str:
    """A name that a client chose, if it looks like one; what it wrote is not told back otherwise."""
    return name if _NAME.fullmatch(name) else _HIDDEN

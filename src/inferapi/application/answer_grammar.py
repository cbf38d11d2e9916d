"""Answers that must be calls, or a value after some reasoning, as grammars in llguidance's Lark.

What clients wrote is in it as JSON alone, written anew: names in string literals, schemas behind ``%json``, each the
root of its own references. https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from inferapi.domain.errors import InvalidRequest
from inferapi.domain.generation import Constraint, ConstraintKind, Tool
from inferapi.domain.model import EngineFacts

MOST_CALLS = 16
"""An answer that must be calls has no more of them: nothing else would end it."""

# As templates write arguments with ``tojson``. Without white space of its own a schema shares the lexemes of the
# grammar around it, so that a token may reach over its end; and a model cannot go on with spaces for ever.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}

_NEWLINE, _COMMA, _SEMICOLON, _BRACE = '"\\n"', '", "', '"; "', '"}"'  # literals as Lark has them, which is as in JSON

_OPEN_BY = frozenset(
    {"additionalProperties", "patternProperties", "minProperties", "$ref", "allOf", "anyOf", "oneOf", "not", "if"}
)


class AnswerGrammar:
    """Writes the grammars for one model.

    Args:
        facts: how the model writes calls and reasoning, and which tags are tokens of its vocabulary. Such a tag is
            named by its id: spelled out, it would be other tokens than those that the model has learned.
    """

    def __init__(self, facts: EngineFacts) -> None:
        self._facts = facts
        self._tag_ids = dict(facts.tag_tokens)

    def calls(self, tools: Sequence[Tool], *, most: int = MOST_CALLS) -> Constraint:
        """One call of one of the tools, or several, with arguments by their schemas, in the model's own format.

        Raises:
            InvalidRequest: the parameters of a tool are no JSON schema of an object.
        """
        schemas = [_schema_of(tool) for tool in tools]
        rules = self._calls(tools, most)
        rules += [f"arguments_{number}: %json {json.dumps(schema)}" for number, schema in enumerate(schemas)]
        return self._constraint(rules)

    def value(self, schema: str) -> Constraint:
        """A JSON value by its schema.

        Raises:
            InvalidRequest: it is no JSON schema.
        """
        schema_with_spacing = {**_parsed("response_format", schema), "x-guidance": _SPACING}
        return self._constraint([f"answer: %json {json.dumps(schema_with_spacing)}"])

    def _calls(self, tools: Sequence[Tool], most: int) -> list[str]:
        """The rule ``answer`` and those that it needs, but for the arguments."""
        if self._facts.tool_format == "hermes":
            opening, closing = self._tag("<tool_call>"), self._tag("</tool_call>")
            call = f"call: {opening} {_NEWLINE} object {_NEWLINE} {closing}"
            return [f"answer: {_repeated('call', _NEWLINE, most)}", call, _object(tools, "arguments")]
        if self._facts.tool_format == "llama3":
            return [f"answer: {_repeated('object', _SEMICOLON, most)}", _object(tools, "parameters")]
        opening = self._tag("[TOOL_CALLS]")
        if "[ARGS]" in self._tag_ids:
            args = self._tag("[ARGS]")
            named = " | ".join(f"{json.dumps(tool.name)} {args} arguments_{n}" for n, tool in enumerate(tools))
            return [f"answer: {_repeated('call', '', most)}", f"call: {opening} named", f"named: {named}"]
        listed = f'"[" {_repeated("object", _COMMA, most)} "]"'
        return [f'answer: {opening} " "? {listed}', _object(tools, "arguments")]

    def _constraint(self, rules: Sequence[str]) -> Constraint:
        return Constraint(ConstraintKind.GRAMMAR, "\n".join([*self._start(), *rules]))

    def _start(self) -> list[str]:
        """The rule ``start``: the answer, after reasoning if the model reasons."""
        if self._facts.reasoning_tags is None:
            return ["start: answer"]
        opening, closing = self._facts.reasoning_tags
        if self._facts.reasons_from_start:
            start, begin = "start: reasoning SPACE? answer", ""
        else:
            start, begin = "start: (reasoning SPACE?)? answer", self._tag(opening) + " "
        rules = [start, "SPACE: /[ \\n]{1,4}/"]
        if closing in self._tag_ids:
            return [*rules, f"reasoning: {begin}TEXT? {self._tag(closing)}", "TEXT: /(.|\\n)+/"]
        # A lazy lexeme ends with the first closing tag.
        return [*rules, f"reasoning: {begin}thought", f"thought[lazy]: /(.|\\n)*/ {json.dumps(closing)}"]

    def _tag(self, tag: str) -> str:
        return f"<[{self._tag_ids[tag]}]>" if tag in self._tag_ids else json.dumps(tag)


def _object(tools: Sequence[Tool], key: str) -> str:
    """The rule ``object``: ``{"name": …, "arguments": …}`` of any of the tools."""
    beginnings = [json.dumps(f'{{"name": {json.dumps(tool.name)}, "{key}": ') for tool in tools]
    return "object: " + " | ".join(f"{begin} arguments_{n} {_BRACE}" for n, begin in enumerate(beginnings))


def _repeated(rule: str, between: str, most: int) -> str:
    return f"{rule} ({between} {rule}){{0,{most - 1}}}" if most > 1 else rule


def _schema_of(tool: Tool) -> dict[str, object]:
    schema = _parsed("tools", tool.parameters)
    if schema.get("type", "object") != "object":
        raise InvalidRequest(problem="tools: the parameters of a function are an object")
    if _names_all(schema):
        # Still by the schema; otherwise a model is free to make up one argument after the other.
        schema["additionalProperties"] = False
    return {**schema, "type": "object", "x-guidance": _SPACING}


def _names_all(schema: dict[str, object]) -> bool:
    """Whether a schema names the properties of its objects one by one, and says nothing of others."""
    properties, required = schema.get("properties"), schema.get("required", [])
    if not isinstance(properties, dict) or not isinstance(required, list) or _OPEN_BY & schema.keys():
        return False
    return {str(name) for name in required} <= properties.keys()


def _parsed(field: str, text: str) -> dict[str, object]:
    try:
        schema = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(problem=f"{field}: a schema is not valid JSON, or nested too deeply") from error
    if not isinstance(schema, dict):
        raise InvalidRequest(problem=f"{field}: a schema is an object")
    return schema


def _refuse(number: str) -> float:
    """NaN and the infinities, which are no JSON."""
    raise ValueError(number)

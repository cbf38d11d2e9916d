"""Answers that must be calls, or may be, or are a value after some reasoning, as grammars in llguidance's Lark.

What clients wrote is in it as JSON alone, written anew: names in string literals, schemas behind ``%json``, each the
root of its own references. https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from inferapi.application.tool_calls import TOOL_TAGS
from inferapi.domain.errors import InvalidRequest
from inferapi.domain.generation import Constraint, ConstraintKind, Tool
from inferapi.domain.model import EngineFacts

MOST_CALLS = 16
"""An answer that must be calls has no more of them: nothing else would end it."""

# As templates write arguments with ``tojson``. Without white space of its own a schema shares the lexemes of the
# grammar around it, so that a token may reach over its end; and a model cannot go on with spaces for ever.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}

_TEXTS = {"hermes": "/(.|\\n)+/", "llama3": "/[ \\t\\r\\n]*[^ \\t\\r\\n{](.|\\n)*/", "mistral": "/(.|\\n)+/"}
"""What may be said beside calls: Llama's may begin an answer without any tag."""
_ANY_ARGUMENTS = '{"type":"object"}'

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
        return self._constraint(["answer: calls", self._opened(), *self._calls(tools, most)])

    def text_or_calls(self, tools: Sequence[Tool], *, most: int = MOST_CALLS) -> Constraint:
        """Text, and then, if the model likes, calls. The arguments of strict tools keep to their schemas.

        A tag that is no token, or that the model spells out all the same, is known by its text: a lazy lexeme ends
        with the first one. https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md#tool-calling

        Raises:
            InvalidRequest: as ``calls``.
        """
        tool_format = self._facts.tool_format or ""
        tag, text = self._tag(TOOL_TAGS[tool_format]), _TEXTS[tool_format]
        rules = ["answer: SAID? | calls", f"SAID: {text}"]
        rules += [f"opened: SAID? {tag} | spelled" if tag.startswith("<") else "opened: spelled"]
        rules += [f"spelled[lazy]: ({text})? {json.dumps(TOOL_TAGS[tool_format])}"]
        return self._constraint([*rules, *self._calls(_freely(tools), most, opens="opened? ")])

    def value_or_calls(self, schema: str, tools: Sequence[Tool], *, most: int = MOST_CALLS) -> Constraint:
        """A JSON value by its schema, or calls. The arguments of strict tools keep to their schemas.

        An answer that does not begin with the tag of a call is a value, in Llama's format too: there, a bare object
        may be either.

        Raises:
            InvalidRequest: as ``calls`` and ``value``.
        """
        value = f"value: %json {json.dumps(_value_schema(schema))}"
        return self._constraint(
            ["answer: value | calls", value, self._opened(), *self._calls(_freely(tools), most, opens="opened ")]
        )

    def value(self, schema: str) -> Constraint:
        """A JSON value by its schema.

        Raises:
            InvalidRequest: it is no JSON schema.
        """
        return self._constraint([f"answer: %json {json.dumps(_value_schema(schema))}"])

    def _opened(self) -> str:
        """The rule ``opened``, where nothing goes before the tag of the first call."""
        return f"opened: {self._tag(TOOL_TAGS[self._facts.tool_format or ''])}"

    def _calls(self, tools: Sequence[Tool], most: int, *, opens: str = "") -> list[str]:
        """The rule ``calls``, whose first call begins with ``opened``, and those that it needs but for that one.

        Calls that need no tag begin with ``opens``.
        """
        schemas = [_schema_of(tool) for tool in tools]
        arguments = [f"arguments_{number}: %json {json.dumps(schema)}" for number, schema in enumerate(schemas)]
        if self._facts.tool_format == "hermes":
            opening, closing = self._tag("<tool_call>"), self._tag("</tool_call>")
            body = f"body: {_NEWLINE} object {_NEWLINE} {closing}"
            calls = f"calls: opened body{_more(f'{_NEWLINE} {opening} body', most)} {_NEWLINE}?"
            return [calls, body, _object(tools, "arguments"), *arguments]
        if self._facts.tool_format == "llama3":
            calls = f"calls: {opens}object{_more(f'{_SEMICOLON} object', most)}"
            return [calls, _object(tools, "parameters"), *arguments]
        if "[ARGS]" in self._tag_ids:
            has_id = "[CALL_ID]" in self._tag_ids
            args = ("call_id? " if has_id else "") + self._tag("[ARGS]")
            named = " | ".join(f"{json.dumps(tool.name)} {args} arguments_{n}" for n, tool in enumerate(tools))
            again = self._tag("[TOOL_CALLS]") + " named"
            rules = [f"call_id: {self._tag('[CALL_ID]')} /[a-zA-Z0-9]{{9}}/"] if has_id else []
            return [f"calls: opened named{_more(again, most)}", f"named: {named}", *rules, *arguments]
        calls = f'calls: opened " "? "[" object{_more(_COMMA + " object", most)} "]"'
        return [calls, _object(tools, "arguments"), *arguments]

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


def _more(rules: str, most: int) -> str:
    """What comes after the first of up to ``most`` calls."""
    return f" ({rules}){{0,{most - 1}}}" if most > 1 else ""


def _freely(tools: Sequence[Tool]) -> list[Tool]:
    """The tools with the schemas that calls keep to which nobody forces."""
    return [tool if tool.is_strict else replace(tool, parameters=_ANY_ARGUMENTS) for tool in tools]


def _value_schema(schema: str) -> dict[str, object]:
    return {**_parsed("response_format", schema), "x-guidance": _SPACING}


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

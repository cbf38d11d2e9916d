"""Schemas and grammars become matchers, or are refused in words that say why."""

import json
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest
from llguidance import LLTokenizer
from tokenizers import Tokenizer

from inferapi.domain.errors import InvalidRequest, QueueFull
from inferapi.domain.generation import Constraint, ConstraintKind
from inferapi.engine import constraints
from inferapi.engine.constraints import MOST_CHARACTERS, MOST_DEPTH, MOST_NODES, MOST_REFERENCES, Constrainer

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
NO = Constraint(ConstraintKind.GRAMMAR, 'start: "no"')

Keeps = Callable[[Constraint, str], bool]


def schema(value: object) -> Constraint:
    return Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(value))


def nested(depth: int) -> dict:
    """A schema of so many layers of JSON."""
    value: dict = {}
    for _ in range(depth - 1):
        value = {"items": value}
    return value


@pytest.fixture
def keeps(constrainer: Constrainer, byte_tokenizer: Tokenizer) -> Keeps:
    """Whether a text may be an answer from its first token to its end."""

    def check(constraint: Constraint, text: str) -> bool:
        matcher = constrainer.matcher(constraint)
        try:
            for token in byte_tokenizer.encode(text).ids:
                matcher.take(token, is_end=False)
            if not matcher.is_complete:
                matcher.take(256, is_end=True)
        except InvalidRequest:
            return False
        return True

    return check


@pytest.mark.parametrize(
    ("text", "does"),
    [
        ('{"name": "Ann", "age": 7}', True),
        ('{"name":"\N{GRINNING FACE} \\u0007","age":-7}', True),
        ('{"age": 7, "name": "Ann"}', False),  # the schema's own order
        ('{"name": "Ann"}', False),
        ('{"name": "Ann", "age": 7.5}', False),
        ('{"name": "Ann", "age": 7, "more": 1}', False),
        ('{"name": "Ann", "age": 7} ', False),
        ('{"name": "Ann", "age": 7', False),
        ("Ann", False),
    ],
)
def test_a_schema_is_kept_to_the_letter(keeps: Keeps, text: str, *, does: bool) -> None:
    assert keeps(schema(PERSON), text) is does


@pytest.mark.parametrize("text", ['{"a": [1, {"b": null}], "c": "d"}', "{}", '{"a":1e5}'])
def test_any_object_is_an_object(keeps: Keeps, text: str) -> None:
    assert keeps(schema({"type": "object"}), text)


@pytest.mark.parametrize("text", ["[]", '"a"', '{\n"a": 1}', '{"a":  1}', '{"a": 1,\n\n"b": 2}'])
def test_no_model_can_go_on_with_white_space_for_ever(keeps: Keeps, text: str) -> None:
    assert not keeps(schema({"type": "object"}), text)


def test_what_a_client_writes_for_the_compiler_is_ignored(keeps: Keeps) -> None:
    lenient = {**PERSON, "x-guidance": {"whitespace_flexible": True, "lenient": True}}

    assert keeps(schema(lenient), '{"name": "Ann", "age": 7}')
    assert not keeps(schema(lenient), '{\n"name": "Ann", "age": 7}')
    with pytest.raises(InvalidRequest):
        keeps(schema({**lenient, "not": {"type": "null"}}), "{}")


def test_definitions_and_recursion_are_followed(keeps: Keeps) -> None:
    tree = {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
                "required": ["children"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    }

    assert keeps(schema(tree), '{"children": [{"children": []}, {"children": [{"children": []}]}]}')
    assert not keeps(schema(tree), '{"children": [{}]}')


def test_a_grammar_is_kept(keeps: Keeps) -> None:
    grammar = Constraint(ConstraintKind.GRAMMAR, 'start: "call " %json {"type": "integer"} ";"')

    assert keeps(grammar, "call 12;")
    assert not keeps(grammar, "call a;")


@pytest.mark.parametrize(
    ("definition", "why"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ('{"const": NaN}', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "not a JSON object"),
        ("true", "not a JSON object"),
        (json.dumps({"enum": ["a" * MOST_CHARACTERS[ConstraintKind.JSON_SCHEMA]]}), "characters"),
        (json.dumps({"enum": [1] * MOST_NODES}), f"more than {MOST_NODES} values"),
        (json.dumps(nested(MOST_DEPTH + 1)), f"more than {MOST_DEPTH} deep"),
        (json.dumps({"anyOf": [{"$ref": "#"}] * (MOST_REFERENCES + 1)}), f"more than {MOST_REFERENCES} references"),
        ('{"$ref": "https://example.com/schema.json"}', "must begin with #"),
        ('{"items": [{"$ref": "file:///etc/passwd"}]}', "must begin with #"),
        ('{"$ref": "#/$defs/nowhere"}', "cannot be enforced"),
        ('{"type": "banana"}', "cannot be enforced"),
        ('{"type": "string", "format": "banana"}', "cannot be enforced"),
        ('{"type": "string", "pattern": "a(?=b)"}', "cannot be enforced"),
        ('{"type": "string", "minLength": 2, "maxLength": 1}', "cannot be enforced"),
        ('{"not": {"type": "string"}}', "cannot be enforced"),
        ('{"const": "\\ud800"}', "cannot be enforced"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused_with_the_reason(
    constrainer: Constrainer, definition: str, why: str
) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        constrainer.matcher(Constraint(ConstraintKind.JSON_SCHEMA, definition))

    assert str(refusal.value).startswith("response_format: ")
    assert why in str(refusal.value)
    assert len(str(refusal.value)) < 300


def test_the_deepest_schema_that_is_allowed_compiles(constrainer: Constrainer) -> None:
    assert not constrainer.matcher(schema(nested(MOST_DEPTH))).is_complete


@pytest.mark.parametrize(
    "definition",
    ["", "start: (", "start: missing", '{"grammars": [{"json_schema": {"type": "object"}}]}', "x" * 600_000],
)
def test_a_grammar_that_is_none_is_refused(constrainer: Constrainer, definition: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^tools or response_format: "):
        constrainer.matcher(Constraint(ConstraintKind.GRAMMAR, definition))


def test_references_that_meet_without_end_harm_nobody(constrainer: Constrainer) -> None:
    branch = {"type": "object", "properties": {"a": {"$ref": "#/$defs/one"}, "b": {"$ref": "#/$defs/two"}}}
    endless = {
        "$defs": {"one": branch, "two": {**branch, "required": ["a"]}},
        "allOf": [{"$ref": "#/$defs/one"}, {"$ref": "#/$defs/two"}],
    }
    constrainer._compile_limit_s = 60.0

    with suppress(InvalidRequest):  # the library's own limit ends it, after a recursion that needs a large stack
        constrainer.matcher(schema(endless))

    assert not constrainer.matcher(NO).is_complete


class Tokenizers:
    """Makes a tokenizer after a script of failures, and counts how often it was asked."""

    def __init__(self, tokenizer: Tokenizer, *failures: BaseException) -> None:
        self._tokenizer = tokenizer
        self._failures = list(failures)
        self.asked = 0

    def __call__(self) -> LLTokenizer:
        self.asked += 1
        if self._failures:
            raise self._failures.pop(0)
        return LLTokenizer(self._tokenizer.to_str(), eos_token=[0])


def test_what_was_compiled_before_is_not_compiled_again_and_each_answer_has_its_own(
    constrainer: Constrainer, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    compile_one = constraints.LLMatcher
    monkeypatch.setattr(
        constraints, "LLMatcher", lambda *args, **kwargs: compiled.append(1) or compile_one(*args, **kwargs)
    )
    first, second = constrainer.matcher(NO), constrainer.matcher(NO)
    for token in byte_tokenizer.encode("no").ids:
        first.take(token, is_end=False)
    third = constrainer.matcher(NO)

    assert len(compiled) == 1
    assert (first.may_end, second.may_end, third.may_end) == (True, False, False)
    for number in range(20):
        constrainer.matcher(Constraint(ConstraintKind.GRAMMAR, f'start: "{number}"'))
    constrainer.matcher(NO)
    assert len(compiled) == 22  # those that were not asked for lately are forgotten


def test_the_tokenizer_is_made_once_and_when_it_is_needed(byte_tokenizer: Tokenizer) -> None:
    make = Tokenizers(byte_tokenizer)
    constrainer = Constrainer(make)
    asked = [make.asked]
    for _ in range(2):
        constrainer.matcher(NO)
        asked.append(make.asked)

    assert asked == [0, 1, 1]


@pytest.mark.parametrize("failure", [ValueError("Only fast tokenizers are supported"), SystemExit(1)])
def test_a_model_without_a_fast_tokenizer_refuses_constraints_and_does_not_try_again(
    byte_tokenizer: Tokenizer, failure: BaseException
) -> None:
    make = Tokenizers(byte_tokenizer, failure)
    constrainer = Constrainer(make)

    for _ in range(2):
        with pytest.raises(InvalidRequest, match="this model's tokenizer"):
            constrainer.matcher(NO)

    assert make.asked == 1


@pytest.mark.parametrize("failure", [MemoryError(), OSError(12, "Cannot allocate memory")])
def test_want_of_memory_is_no_fault_of_the_constraint_and_may_pass(
    byte_tokenizer: Tokenizer, failure: Exception
) -> None:
    constrainer = Constrainer(Tokenizers(byte_tokenizer, failure))

    with pytest.raises(type(failure)):
        constrainer.matcher(NO)

    assert not constrainer.matcher(NO).is_complete


def test_a_compiler_that_does_not_come_back_is_left_alone_until_it_does(
    constrainer: Constrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, real = threading.Event(), constraints.LLMatcher

    def slow(*args, **options):
        gate.wait(60)
        return real(*args, **options)

    monkeypatch.setattr(constraints, "LLMatcher", slow)
    constrainer._compile_limit_s = 0.25
    with pytest.raises(InvalidRequest, match=r"longer than 0.25 s"):
        constrainer.matcher(NO)
    with pytest.raises(QueueFull):
        constrainer.matcher(NO)

    gate.set()
    constrainer._last.wait()

    assert not constrainer.matcher(NO).is_complete

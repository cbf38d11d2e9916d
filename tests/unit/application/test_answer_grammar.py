from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from fakes import make_facts
from inferapi.application.answer_grammar import AnswerGrammar
from inferapi.application.tool_calls import ToolCallParser
from inferapi.domain.errors import InvalidRequest
from inferapi.domain.generation import Constraint, ConstraintKind, Tool

END = "<|end|>"
TAGS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<think>", "</think>")
WEATHER = Tool(
    "weather",
    "",
    json.dumps(
        {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city"],
            "$defs": {"city": {"enum": ["Rome", 'O"slo']}},
        }
    ),
)
CLOCK = Tool("clock", "", '{"type": "object", "properties": {}}')
TOOLS = (WEATHER, CLOCK)


class Vocabulary:
    """A token for each byte, one for the end, and one for each of ``tags``."""

    def __init__(self, *tags: str) -> None:
        letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        self.tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
        self.tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self.tokenizer.decoder = decoders.ByteLevel()
        self.tokenizer.add_special_tokens([END, *tags])
        self.end = self.tokenizer.token_to_id(END)
        self.tag_tokens = tuple((tag, self.tokenizer.token_to_id(tag)) for tag in tags)
        self._constrained = LLTokenizer(self.tokenizer.to_str(), eos_token=self.end)

    def matcher(self, constraint: Constraint) -> LLMatcher:
        assert constraint.kind is ConstraintKind.GRAMMAR
        grammar = json.dumps({"grammars": [{"lark_grammar": constraint.definition}]})
        matcher = LLMatcher(self._constrained, grammar, log_level=0)
        assert not matcher.is_error(), matcher.get_error()
        return matcher

    def accepts(self, constraint: Constraint, text: str) -> bool:
        matcher = self.matcher(constraint)
        tokens = self.tokenizer.encode(text).ids
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()

    def speak(self, constraint: Constraint, chance: random.Random) -> str:
        """An answer in which every token that may come is as likely as any other."""
        matcher, tokens = self.matcher(constraint), []
        while not matcher.is_stopped():
            allowed = [token for token, bias in enumerate(matcher.compute_logit_bias()) if bias]
            token = chance.choice(allowed)
            if token == self.end:
                assert matcher.is_accepting()
                break
            assert matcher.consume_token(token)
            tokens.append(token)
        return self.tokenizer.decode(tokens, skip_special_tokens=False)


PLAIN, TAGGED = Vocabulary(), Vocabulary(*TAGS)
SPECIAL = Vocabulary("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]")
UNNAMED = Vocabulary("[TOOL_CALLS]")  # as before Mistral wrote names outside of the JSON

FORMATS = [
    pytest.param(vocabulary, tool_format, id=f"{tool_format}-{name}")
    for tool_format, name, vocabulary in (
        ("hermes", "text", PLAIN),
        ("hermes", "tokens", TAGGED),
        ("llama3", "text", PLAIN),
        ("mistral", "text", PLAIN),
        ("mistral", "list", UNNAMED),
        ("mistral", "named", TAGGED),
    )
]


def grammar(vocabulary: Vocabulary, tool_format: str | None, **facts) -> AnswerGrammar:
    return AnswerGrammar(make_facts(tool_format=tool_format, tag_tokens=vocabulary.tag_tokens, **facts))


def calls_in(tool_format: str, text: str) -> list[tuple[str, str]]:
    """What the parser makes of an answer that is calls and nothing else."""
    parser = ToolCallParser(tool_format, [tool.name for tool in TOOLS])
    pieces = parser.push(text) + parser.flush()
    assert [piece.text for piece in pieces if piece.text] == [], text
    parts = [piece.tool_call for piece in pieces if piece.tool_call is not None]
    names = [part.name for part in parts if part.name is not None]
    return [
        (name, "".join(part.arguments for part in parts if part.number == number)) for number, name in enumerate(names)
    ]


@pytest.mark.parametrize(("vocabulary", "tool_format"), FORMATS)
def test_whatever_a_model_says_is_calls_that_the_parser_understands(vocabulary, tool_format):
    constraint = grammar(vocabulary, tool_format).calls(TOOLS, most=3)
    seen = set()
    for seed in range(12):
        calls = calls_in(tool_format, vocabulary.speak(constraint, random.Random(seed)))
        assert 1 <= len(calls) <= 3
        for name, text in calls:
            seen.add(name)
            arguments = json.loads(text)
            if name == "clock":
                assert arguments == {}
            else:
                assert arguments["city"] in {"Rome", 'O"slo'}
                assert set(arguments) <= {"city", "days"}
                assert arguments.get("days", 1) in range(1, 10)
    assert seen == {"weather", "clock"}


@pytest.mark.parametrize(
    ("vocabulary", "tool_format", "text"),
    [
        (TAGGED, "hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome", "days": 2}}\n</tool_call>'),
        (PLAIN, "llama3", '{"name": "weather", "parameters": {"city": "Rome"}}'),
        (UNNAMED, "mistral", '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Rome"}}]'),
        (UNNAMED, "mistral", '[TOOL_CALLS][{"name": "clock", "arguments": {}}]'),
        (TAGGED, "mistral", '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}'),
    ],
)
def test_calls_as_templates_write_them_are_accepted(vocabulary, tool_format, text):
    assert vocabulary.accepts(grammar(vocabulary, tool_format).calls(TOOLS), text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sure!",
        '<tool_call>\n{"name": "rm", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>',
        '<tool_call>\n{"name": "clock", "arguments": {"city": "Rome"}}\n</tool_call>',
        '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>\nDone.',
        '<tool_call>\n{"name": "clock", "arguments": {}}',
    ],
)
def test_anything_else_is_not(text):
    assert not TAGGED.accepts(grammar(TAGGED, "hermes").calls(TOOLS), text)


STRICT = tuple(replace(tool, is_strict=True) for tool in TOOLS)
SPOKEN = [  # what the model says, and whether the arguments of a strict tool in it keep to its schema
    ("hermes", "", True),
    ("hermes", "Sure, a <b>moment</b>! 1 < 2", True),
    ("hermes", 'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>', True),
    ("hermes", '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>', False),
    ("hermes", "<tool_call>\n{}", False),
    ("llama3", "Sure! {}", True),
    ("llama3", '{"name": "weather", "parameters": {"city": "Rome"}}', True),
    ("llama3", 'It is: <|python_tag|>{"name": "weather", "parameters": {"city": "Rome"}}', True),
    ("llama3", ' {"name": "weather", "parameters": {"city": "Bern"}}', False),
    ("llama3", 'It is: <|python_tag|>{"name": "weather", "parameters": {"city": "Bern"}}', False),
    ("mistral", "Sure [1]!", True),
    ("mistral", '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Rome"}}]', True),
    ("mistral", 'So: [TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Bern"}}]', False),
]


@pytest.mark.parametrize("vocabulary", [PLAIN, SPECIAL, UNNAMED], ids=["text", "tokens", "list"])
@pytest.mark.parametrize(("tool_format", "text", "is_accepted"), SPOKEN)
def test_where_the_model_is_free_it_says_what_it_likes_and_strict_calls_keep_to_their_schemas(
    vocabulary, tool_format, text, is_accepted
):
    constraint = grammar(vocabulary, tool_format).text_or_calls(STRICT)
    assert vocabulary.accepts(constraint, text) is is_accepted


def test_calls_of_tools_that_are_not_strict_have_arguments_of_any_kind():
    writes = grammar(PLAIN, "llama3")
    text = '{"name": "weather", "parameters": {"city": 7, "planet": ["Mars"]}}'
    assert PLAIN.accepts(writes.text_or_calls((WEATHER, STRICT[1])), text)
    assert not PLAIN.accepts(writes.text_or_calls(STRICT), text)


def test_a_tag_that_is_spelled_out_begins_a_call_as_well():
    constraint = grammar(SPECIAL, "hermes").text_or_calls(STRICT)
    spelled = [token for letter in "<tool_call>" for token in SPECIAL.tokenizer.encode(letter).ids]
    good = SPECIAL.tokenizer.encode('\n{"name": "clock", "arguments": {}}\n</tool_call>').ids
    bad = SPECIAL.tokenizer.encode("\nclock").ids
    assert SPECIAL.matcher(constraint).try_consume_tokens(spelled + good) == len(spelled + good)
    assert SPECIAL.matcher(constraint).try_consume_tokens(spelled + bad) < len(spelled + bad)


@pytest.mark.parametrize(("vocabulary", "tool_format"), FORMATS)
def test_beside_tools_a_value_or_calls_are_the_answer(vocabulary, tool_format):
    schema = '{"type": "array", "items": {"type": "integer", "minimum": 1, "maximum": 9}, "maxItems": 3}'
    constraint = grammar(vocabulary, tool_format).value_or_calls(schema, STRICT, most=2)
    assert vocabulary.accepts(constraint, "[1, 2]")
    assert not vocabulary.accepts(constraint, "[0]")
    assert not vocabulary.accepts(constraint, "Sure!")
    kinds = set()
    for seed in range(12):
        text = vocabulary.speak(constraint, random.Random(seed))
        is_value = text.startswith("[") and not text.startswith("[TOOL")
        kinds.add(is_value)
        assert all(number in range(1, 10) for number in json.loads(text)) if is_value else calls_in(tool_format, text)
    assert kinds == {True, False}


@pytest.mark.parametrize(("vocabulary", "tool_format"), FORMATS)
@pytest.mark.parametrize(
    ("text", "is_accepted"),
    [('{"a": 1}', True), ('{"a": "x"}', False), ('{"name": "weather", "parameters": {"city": "Bern"}}', False)],
)
def test_beside_tools_a_value_may_be_an_object(vocabulary, tool_format, text, is_accepted):
    schema = '{"properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}'
    assert vocabulary.accepts(grammar(vocabulary, tool_format).value_or_calls(schema, STRICT), text) is is_accepted


def test_in_llamas_format_a_call_beside_a_value_has_the_tag():
    constraint = grammar(PLAIN, "llama3").value_or_calls('{"type": "array"}', STRICT)
    call = '{"name": "clock", "parameters": {}}'
    assert PLAIN.accepts(constraint, f"<|python_tag|>{call}")
    assert not PLAIN.accepts(constraint, call)


def test_an_answer_may_end_with_a_new_line_after_its_calls():
    call = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    assert TAGGED.accepts(grammar(TAGGED, "hermes").text_or_calls(STRICT), f"{call}\n")


def test_a_call_may_have_an_id_where_the_vocabulary_has_a_tag_for_it():
    named = Vocabulary("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")
    text = '[TOOL_CALLS]weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Rome"}'
    assert named.accepts(grammar(named, "mistral").calls(TOOLS), text)
    assert named.accepts(grammar(named, "mistral").calls(TOOLS), text.replace("[CALL_ID]a1B2c3D4e", ""))
    assert not named.accepts(grammar(named, "mistral").calls(TOOLS), text.replace("a1B2c3D4e", "a1"))


@pytest.mark.parametrize(("vocabulary", "tool_format"), FORMATS)
def test_one_call_is_one_call(vocabulary, tool_format):
    constraint = grammar(vocabulary, tool_format).calls([CLOCK], most=1)
    assert calls_in(tool_format, vocabulary.speak(constraint, random.Random(1))) == [("clock", "{}")]


@pytest.mark.parametrize("vocabulary", [PLAIN, TAGGED])
@pytest.mark.parametrize(
    ("from_start", "text", "is_accepted"),
    [
        (False, "<think>Hm, {1}</think>\n\n[1]", True),
        (False, "<think></think>[1]", True),
        (False, "[1]", True),
        (False, "Hm</think>[1]", False),
        (False, "<think>Hm</think>", False),
        (True, "Hm, {1}\n</think>\n\n[1]", True),
        (True, "[1]", False),
    ],
)
def test_a_value_may_follow_reasoning_and_must_where_the_answer_begins_within(
    vocabulary, from_start, text, is_accepted
):
    writes = grammar(vocabulary, None, reasoning_tags=("<think>", "</think>"), reasons_from_start=from_start)
    assert vocabulary.accepts(writes.value('{"type": "array", "items": {"type": "integer"}}'), text) is is_accepted


@pytest.mark.parametrize("vocabulary", [PLAIN, TAGGED])
def test_a_call_may_follow_reasoning(vocabulary):
    writes = grammar(vocabulary, "hermes", reasoning_tags=("<think>", "</think>"))
    call = '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    assert vocabulary.accepts(writes.calls(TOOLS), f"<think>The time.</think>\n\n{call}")
    assert not vocabulary.accepts(writes.calls(TOOLS), "<think>The time.</think>It is late.")


def test_arguments_that_a_schema_does_not_name_are_not_made_up_unless_it_leaves_them_open():
    writes = grammar(PLAIN, "llama3")
    closed = Tool("find", "", '{"properties": {"a": {"type": "integer"}}}')
    opened = Tool("find", "", '{"properties": {"a": {"type": "integer"}}, "additionalProperties": true}')
    text = '{"name": "find", "parameters": {"a": 1, "b": 2}}'
    assert not PLAIN.accepts(writes.calls([closed]), text)
    assert PLAIN.accepts(writes.calls([opened]), text)
    assert PLAIN.accepts(writes.calls([Tool("find", "", "{}")]), text)
    needed = Tool("find", "", '{"properties": {"a": {"type": "integer"}}, "required": ["a", "b"]}')
    assert PLAIN.accepts(writes.calls([needed]), text)


@pytest.mark.parametrize("name", ['a"b', "a\\n", "a\nb: %json {}", "</tool_call>", "a} | TEXT", "naïve"])
def test_a_name_is_a_name_and_no_grammar(name):
    constraint = grammar(PLAIN, "llama3").calls([Tool(name, "", '{"properties": {}}')], most=1)
    text = PLAIN.speak(constraint, random.Random(1))
    assert json.loads(text) == {"name": name, "parameters": {}}


def test_a_schema_is_data_wherever_it_holds_something_that_looks_like_a_grammar():
    looks = '"}\nstart: "x"\n<[0]> %json {}'
    parameters = {"properties": {"q": {"const": looks}}, "required": ["q"]}
    tool = Tool("find", "", json.dumps(parameters))
    text = PLAIN.speak(grammar(PLAIN, "llama3").calls([tool], most=1), random.Random(1))
    assert json.loads(text)["parameters"] == {"q": looks}


@pytest.mark.parametrize(
    "parameters",
    [
        *("", "{", "[]", "true", '{"type": "string"}', '{"const": NaN}'),
        pytest.param('{"a":' * 100_000, id="deep"),
        pytest.param("9" * 5000, id="a long number"),
    ],
)
def test_parameters_that_are_no_schema_of_an_object_are_refused(parameters):
    with pytest.raises(InvalidRequest, match="tools: "):
        grammar(PLAIN, "llama3").calls([Tool("find", "", parameters)])


@pytest.mark.parametrize("schema", ["", "[]", '{"const": Infinity}'])
def test_a_response_format_that_is_no_schema_is_refused(schema):
    with pytest.raises(InvalidRequest, match="response_format: "):
        grammar(PLAIN, None).value(schema)

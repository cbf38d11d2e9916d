from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferapi.application.answer_pieces import Piece
from inferapi.application.tool_calls import ToolCallParser

NAMES = ("weather", "clock")
CALL = '{"name": "weather", "arguments": {"city": "Rome"}}'
LLAMA_CALL = '{"name": "weather", "parameters": {"city": "Rome"}}'
ROME = ("weather", '{"city": "Rome"}')

Told = list[str | tuple[str, str]]


def read(tool_format: str, chunks: list[str], **options) -> list[Piece]:
    parser = ToolCallParser(tool_format, NAMES, **options)
    return [piece for chunk in chunks for piece in parser.push(chunk)] + parser.flush()


def told(tool_format: str, *chunks: str, **options) -> Told:
    """Texts, and calls as a name and arguments, in the order in which they began."""
    items: list[str | list[str]] = []
    calls: dict[int, list[str]] = {}
    for piece in read(tool_format, list(chunks), **options):
        if piece.text and items and isinstance(items[-1], str):
            items[-1] += piece.text
        elif piece.text:
            items.append(piece.text)
        elif piece.tool_call is not None:
            part = piece.tool_call
            if part.number not in calls:
                assert part.call_id
                calls[part.number] = [part.name, ""]
                items.append(calls[part.number])
            else:
                assert (part.call_id, part.name) == (None, None)
            calls[part.number][1] += part.arguments
    return [item if isinstance(item, str) else tuple(item) for item in items]


def cut(text: str, places: set[int]) -> list[str]:
    ends = [*sorted(place for place in places if place < len(text)), len(text)]
    return [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


@pytest.mark.parametrize(
    ("text", "items"),
    [
        (f"<tool_call>\n{CALL}\n</tool_call>", [ROME]),
        (f"Let me see.\n<tool_call>\n{CALL}\n</tool_call>\n", ["Let me see.", ROME]),
        (f"<tool_call>{CALL}</tool_call>\n<tool_call>{CALL}</tool_call>", [ROME, ROME]),
        (f"\n\n<tool_call>{CALL}</tool_call>Done.", [ROME, "Done."]),
        (f"<tool_call>{CALL}<tool_call>{CALL}", [ROME, ROME]),
        (f"<tool_call>\n{CALL}\n", [ROME]),
        ('<tool_call>{"arguments": {"city": "Rome"}, "name": "weather"}</tool_call>', [ROME]),
        ('<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Rome\\"}"}</tool_call>', [ROME]),
        ('<tool_call>{"id": 7, "type": "function", "name": "clock", "arguments": {}}</tool_call>', [("clock", "{}")]),
        ('<tool_call>{"name": "clock"}</tool_call>', [("clock", "{}")]),
        (
            '<tool_call>{"name": "weather", "arguments": {"city": "}\\"]{", "in": [{}, []]}}</tool_call>',
            [("weather", '{"city": "}\\"]{", "in": [{}, []]}')],
        ),
        ('<tool_call>{"name": "weather", "arguments": {"city": "Ro', [("weather", '{"city": "Ro')]),
        (f"<tool_call> <tool_call>{CALL}</tool_call>", ["<tool_call>", ROME]),
    ],
)
def test_hermes_calls_are_objects_in_tags(text, items):
    assert told("hermes", text) == items


@pytest.mark.parametrize(
    ("text", "items"),
    [
        (LLAMA_CALL, [ROME]),
        (f"\n{LLAMA_CALL}; {LLAMA_CALL}", [ROME, ROME]),
        (f"{LLAMA_CALL};", [ROME]),
        (f"{LLAMA_CALL}\n{CALL}", [ROME, ROME]),
        (f"<|python_tag|>{LLAMA_CALL}", [ROME]),
        (f"<|python_tag|>{LLAMA_CALL};<|python_tag|>{LLAMA_CALL}", [ROME, ROME]),
        (f"I will look. <|python_tag|>{LLAMA_CALL}", ["I will look.", ROME]),
        ('{"type": "function", "name": "clock", "parameters": {}}', [("clock", "{}")]),
        (f"{LLAMA_CALL} as you see", [ROME, " as you see"]),
    ],
)
def test_llama_calls_are_objects_at_the_beginning_or_after_the_tag(text, items):
    assert told("llama3", text) == items


@pytest.mark.parametrize(
    ("tool_format", "text", "items"),
    [
        ("hermes", f'["<tool_call>{CALL}</tool_call>"]', [f'["<tool_call>{CALL}</tool_call>"]']),
        ("hermes", f" <tool_call>{CALL}</tool_call>", [ROME]),
        ("llama3", LLAMA_CALL, [LLAMA_CALL]),
        ("llama3", f"<|python_tag|>{LLAMA_CALL}", [ROME]),
        ("mistral", '{"a": "[TOOL_CALLS]weather{}"}', ['{"a": "[TOOL_CALLS]weather{}"}']),
        ("mistral", "[1]", ["[1]"]),
        ("mistral", f"[TOOL_CALLS][{CALL}]", [ROME]),
        ("mistral", "[TOOL", ["[TOOL"]),
        ("hermes", "", []),
    ],
)
@pytest.mark.parametrize("size", [1, 3, 1000])
def test_where_a_value_may_be_the_answer_nothing_in_it_is_a_call(tool_format, text, items, size):
    chunks = [text[start : start + size] for start in range(0, len(text), size)]
    assert told(tool_format, *chunks, or_value=True) == items


@pytest.mark.parametrize(
    ("text", "items"),
    [
        (f"[TOOL_CALLS][{CALL}]", [ROME]),
        (f"[TOOL_CALLS] [{CALL}, {CALL}]", [ROME, ROME]),
        (f"Wait.[TOOL_CALLS] [{CALL}]\nDone.", ["Wait.", ROME, "\nDone."]),
        (f"[TOOL_CALLS] [{CALL},\n", [ROME]),
        ('[TOOL_CALLS]weather[ARGS]{"city": "Rome"}', [ROME]),
        ('[TOOL_CALLS]weather{"city": "Rome"}[TOOL_CALLS]clock[ARGS]{}', [ROME, ("clock", "{}")]),
        ('[TOOL_CALLS]weather[CALL_ID]a1B2c3D4e[ARGS]{"city": "Rome"}', [ROME]),
        ("Look: [TOOL_CALLS] weather [ARGS]{}", ["Look: [TOOL_CALLS] weather [ARGS]{}"]),
    ],
)
def test_mistral_calls_are_a_list_or_a_name_and_arguments(text, items):
    assert told("mistral", text) == items


@pytest.mark.parametrize(
    ("tool_format", "text"),
    [
        ("hermes", "Nothing to call. "),
        ("hermes", "<tool_call> is how a call begins </tool_call>"),
        ("hermes", '<tool_call>{"name": "rm", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "weather", "reason": "none"}</tool_call>'),
        ("hermes", '<tool_call>{"arguments": {"city": "Rome"}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "weather", "arguments": "[1]"}</tool_call>'),
        ("hermes", '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"\\ud800\\"}"}</tool_call>'),
        ("hermes", "<tool_call>{}</tool_call>"),
        ("hermes", '<tool_call>{"name": "wea'),
        ("hermes", "<tool_ca"),
        ("hermes", LLAMA_CALL),
        ("llama3", '{"city": "Rome"}'),
        ("llama3", '{"name": "Bob", "parameters": {}}'),
        ("llama3", f"The call is {LLAMA_CALL}"),
        ("llama3", '<|python_tag|>weather.call(city="Rome")'),
        ("llama3", "<|python_tag|>"),
        ("mistral", "[TOOL_CALLS]rm[ARGS]{}"),
        ("mistral", "[TOOL_CALLS][1, 2]"),
        ("mistral", "[TOOL_CALLS]" + 500 * "w" + "{}"),
        ("mistral", f"[{CALL}]"),
        ("mistral", "[TOOL_CALLS]\n"),
    ],
)
def test_what_is_no_call_is_text_to_its_last_character(tool_format, text):
    assert told(tool_format, text) == [text]


def test_the_rest_of_a_call_that_goes_wrong_is_text():
    text = '<tool_call>{"name": "clock", "arguments": {}, "oh": 1}</tool_call>'
    assert told("hermes", text) == [("clock", "{}"), ', "oh": 1}</tool_call>']


def test_arguments_are_told_as_they_come():
    parser = ToolCallParser("hermes", NAMES)
    assert parser.push('<tool_call>{"name": "weather", ') == []
    assert parser.push('"arguments": ') == []
    begin, first = parser.push('{"ci')[-2:]
    assert (begin.tool_call.number, begin.tool_call.name, begin.tool_call.arguments) == (0, "weather", "")
    assert first.tool_call.arguments == '{"ci'
    assert [piece.tool_call.arguments for piece in parser.push('ty": "Ro')] == ['ty": "Ro']
    assert [piece.tool_call.arguments for piece in parser.push('me"}') if piece.tool_call] == ['me"}']
    assert parser.push("}</tool_call>") == [Piece(61), Piece(73)]
    assert parser.calls == 1


def test_text_is_told_as_it_comes_but_for_what_may_become_a_call():
    parser = ToolCallParser("hermes", NAMES)
    assert parser.push("Let me") == [Piece(6, text="Let me")]
    assert parser.push(" see. <to") == [Piece(11, text=" see.")]
    assert parser.push("day>") == [Piece(19, text=" <today>")]


def test_calls_beyond_the_most_are_left_out_and_counted():
    parser = ToolCallParser("llama3", NAMES, max_calls=1)
    pieces = parser.push(f"{LLAMA_CALL}; {LLAMA_CALL} Bye") + parser.flush()
    assert {piece.tool_call.number for piece in pieces if piece.tool_call is not None} == {0}
    assert ("".join(piece.text for piece in pieces), parser.calls) == (" Bye", 2)


@pytest.mark.parametrize(
    ("tool_format", "pattern"), [("hermes", "call_[0-9a-f]{24}"), ("llama3", "call_.+"), ("mistral", "[A-Za-z0-9]{9}")]
)
def test_each_call_has_an_id_of_its_own_that_its_template_takes_back(tool_format, pattern):
    text = {
        "hermes": 2 * f"<tool_call>{CALL}</tool_call>",
        "llama3": f"{CALL};{CALL}",
        "mistral": f"[TOOL_CALLS][{CALL},{CALL}]",
    }[tool_format]
    calls = [piece.tool_call for piece in read(tool_format, [text]) if piece.tool_call is not None]
    ids = {call.call_id for call in calls if call.call_id is not None}
    assert len(ids) == 2
    assert all(re.fullmatch(pattern, call_id) for call_id in ids)


SNIPPETS = [
    *("<tool_call>", "</tool_call>", "<tool", "call>", "<|python_tag|>", "<|python", "[TOOL_CALLS]", "[TOOL", "[ARGS]"),
    *(CALL, LLAMA_CALL, '{"name": "weather", ', '"arguments": ', '{"a": "', '"name": "clock"', "weather", "[CALL_ID]"),
    *("{", "}", "[", "]", '"', "\\", ",", ":", ";", "<", "é", "x", " ", "\n"),
]
formats = st.sampled_from(["hermes", "llama3", "mistral"])
texts = st.lists(st.sampled_from(SNIPPETS), max_size=14).map("".join)
cuts = st.sets(st.integers(0, 200))


@settings(deadline=None)
@given(formats, texts, cuts)
def test_it_makes_no_difference_how_the_text_is_cut(tool_format, text, places):
    whole = told(tool_format, text)
    assert told(tool_format, *cut(text, places)) == whole
    assert told(tool_format, *text) == whole


@settings(deadline=None)
@given(formats, texts, cuts)
def test_without_a_call_every_character_is_text(tool_format, text, places):
    items = told(tool_format, *cut(text, places))
    if all(isinstance(item, str) for item in items):
        assert "".join(items) == text


@settings(deadline=None)
@given(formats, texts, cuts)
def test_the_ends_of_the_pieces_go_up_to_the_end_of_the_text(tool_format, text, places):
    ends = [piece.end for piece in read(tool_format, cut(text, places))]
    assert ends == sorted(ends)
    assert all(end <= len(text) for end in ends)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
calls = st.tuples(st.sampled_from(NAMES), st.dictionaries(st.text(max_size=4), values, max_size=4).map(json.dumps))
sayings = st.text('ab{}[]"<\\,:; \n', max_size=12).map(str.strip)


@settings(deadline=None)
@given(st.lists(st.tuples(sayings, calls), min_size=1, max_size=4), cuts)
def test_hermes_calls_come_out_as_they_were_put_in(spoken, places):
    text = "".join(
        f'{saying}\n<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'
        for saying, (name, arguments) in spoken
    )
    items = [item for saying, call in spoken for item in (saying, call) if item]
    assert told("hermes", *cut(text, places)) == items


@settings(deadline=None)
@given(st.lists(calls, min_size=1, max_size=4), st.sampled_from(["parameters", "arguments"]), cuts)
def test_llama_calls_come_out_as_they_were_put_in(spoken, key, places):
    text = "; ".join(f'{{"name": "{name}", "{key}": {arguments}}}' for name, arguments in spoken)
    assert told("llama3", *cut(text, places)) == spoken


@settings(deadline=None)
@given(sayings, st.lists(calls, min_size=1, max_size=4), st.booleans(), cuts)
def test_mistral_calls_come_out_as_they_were_put_in(saying, spoken, is_list, places):
    listed = ", ".join(f'{{"name": "{name}", "arguments": {arguments}}}' for name, arguments in spoken)
    named = "".join(f"[TOOL_CALLS]{name}[ARGS]{arguments}" for name, arguments in spoken)
    text = saying + (f"[TOOL_CALLS] [{listed}]" if is_list else named)
    assert told("mistral", *cut(text, places)) == [item for item in (saying, *spoken) if item]

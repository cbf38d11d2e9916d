from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes import TIMINGS, chosen_token
from inferapi.application.answer_parts import Part, collected
from inferapi.application.answer_reader import AnswerReader
from inferapi.application.reasoning import ReasoningParser
from inferapi.application.tool_calls import ToolCallParser
from inferapi.domain.generation import ChosenToken, Chunk, Finish, FinishReason, Usage

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'


def reader(*, reasons: bool = True, calls: bool = True) -> AnswerReader:
    return AnswerReader(
        0,
        reasoning=ReasoningParser(("<think>", "</think>"), from_start=False) if reasons else None,
        calls=ToolCallParser("hermes", ["weather"]) if calls else None,
    )


def finish(reason: FinishReason = FinishReason.STOP) -> Finish:
    return Finish(reason, Usage(3, 4), TIMINGS)


def read(parts_of: AnswerReader, *words: str, reason: FinishReason = FinishReason.STOP) -> list[Part]:
    """Each word is a token, whose log-probability was asked for."""
    chunks = [Chunk(word, tokens=(chosen_token(word, number, 0),)) for number, word in enumerate(words, start=1)]
    return [part for chunk in (*chunks, Chunk("", finish(reason))) for part in parts_of.read(chunk)]


def words_of(tokens: tuple[ChosenToken, ...]) -> list[str]:
    return [token.chance.text for token in tokens]


def test_text_without_parsers_passes_as_it_is_whatever_it_looks_like():
    parts = read(reader(reasons=False, calls=False), "<think>", "a</think>", CALL)
    assert [part.text for part in parts] == ["<think>", "a</think>", CALL, ""]
    assert [part.finish_reason for part in parts] == [None, None, None, "stop"]


def test_reasoning_text_and_calls_are_told_apart():
    parts = read(reader(), "<think>Hm", ".</think>\n", "I look.\n", CALL)
    (choice,) = collected(parts)
    assert (choice.reasoning, choice.text, choice.finish_reason) == ("Hm.", "\nI look.", "tool_calls")
    assert [(call.name, call.arguments) for call in choice.tool_calls] == [("weather", '{"city": "Rome"}')]


@pytest.mark.parametrize(
    ("words", "reasoning_tokens"),
    [
        (["<think>", "Hm", ".", "</think>", "\n", "Yes"], 4),
        (["<think>", "</", "think>", "Yes"], 3),
        (["<think>", "Hm", "."], 4),  # cut off: all of it, the token that has no text included
        ([" ", "<think>", "</think>"], 3),
        (["Yes", "</think>"], 0),
        ([], 0),
    ],
)
def test_tokens_of_the_reasoning_are_counted_with_its_tags(words, reasoning_tokens):
    counting = reader()
    chunks = [Chunk(word, completion_tokens=number) for number, word in enumerate(words, start=1)]
    for chunk in (*chunks, Chunk("", finish(), completion_tokens=len(words) + 1)):
        counting.read(chunk)
    assert counting.reasoning_tokens == reasoning_tokens


def test_a_call_within_the_reasoning_is_a_thought():
    (choice,) = collected(read(reader(), "<think>", CALL, "</think>", "No."))
    assert (choice.reasoning, choice.text, choice.tool_calls) == (CALL, "No.", ())
    assert choice.finish_reason == "stop"


def test_a_part_has_one_kind_of_content():
    parts = read(reader(), f"<think>Hm</think>Yes.{CALL}")
    kinds = [(bool(part.text), bool(part.reasoning), part.tool_call is not None) for part in parts]
    assert all(sum(kind) <= 1 for kind in kinds)
    assert kinds[-1] == (False, False, False)


def test_a_call_that_the_limit_cut_ends_by_length():
    parts = read(reader(), '<tool_call>{"name": "weather", "arguments": {"ci', reason=FinishReason.LENGTH)
    (choice,) = collected(parts)
    assert ([call.arguments for call in choice.tool_calls], choice.finish_reason) == (['{"ci'], "length")


def test_a_chunk_that_says_nothing_certain_makes_no_part():
    parts_of = reader()
    assert parts_of.read(Chunk("<thi")) == []
    assert parts_of.read(Chunk("nk>")) == []
    assert parts_of.read(Chunk("Hm")) == [Part(0, reasoning="Hm")]


def test_what_is_held_back_comes_before_the_end():
    assert reader().read(Chunk("a <tool_", finish())) == [
        Part(0, text="a"),
        Part(0, text=" <tool_"),
        Part(0, finish_reason="stop"),
    ]


def test_tokens_ride_on_the_parts_in_which_they_end():
    parts = read(reader(), "<think>", "Hm", "</think>", "a ", "<b", "> c")
    told = [(part.reasoning, part.text, words_of(part.tokens)) for part in parts]
    assert told == [
        ("", "", ["<think>"]),
        ("Hm", "", ["Hm"]),
        ("", "", ["</think>"]),
        ("", "a", []),
        ("", " <b", ["a ", "<b"]),
        ("", "> c", ["> c"]),
        ("", "", []),
    ]


def test_several_tokens_of_one_chunk_are_told_apart_by_their_texts():
    tokens = tuple(chosen_token(word, number, 0) for number, word in enumerate(["Hm", "</think>", "Yes"], start=1))
    parts = AnswerReader(0, reasoning=ReasoningParser(("<think>", "</think>"), from_start=True)).read(
        Chunk("Hm</think>Yes", tokens=tokens)
    )
    assert [(part.reasoning, part.text, words_of(part.tokens)) for part in parts] == [
        ("Hm", "", ["Hm", "</think>"]),
        ("", "Yes", ["Yes"]),
    ]


def test_tokens_that_no_part_was_left_for_come_with_the_end():
    end = chosen_token("<|end|>", 2, 0)
    parts = reader(reasons=False, calls=False).read(Chunk("", finish(), (end,)))
    assert parts == [Part(0, tokens=(end,), finish_reason="stop")]


WORDS = ["<think>", "Hm", "</think>", " ", "\n", "<", "Yes", CALL, CALL[:30], "{"]
words = st.lists(st.sampled_from(WORDS), max_size=10)


@settings(deadline=None)
@given(words, st.booleans(), st.booleans())
def test_each_token_is_told_once_and_in_order(spoken, reasons, calls):
    parts = read(reader(reasons=reasons, calls=calls), *spoken)
    assert [word for part in parts for word in words_of(part.tokens)] == spoken
    assert [part.finish_reason is not None for part in parts] == [False] * (len(parts) - 1) + [True]


@pytest.mark.parametrize("reason", list(FinishReason))
def test_an_answer_without_calls_ends_as_the_engine_says(reason):
    assert read(reader(), "Hi", reason=reason)[-1].finish_reason == reason.value

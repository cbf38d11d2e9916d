from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferapi.application.answer_pieces import Piece
from inferapi.application.reasoning import ReasoningParser

TAGS = ("<think>", "</think>")
SNIPPETS = ["<think>", "</think>", "<think", "</", "<", ">", "think>", "nk>", "a", "né", " ", "\n"]

texts = st.lists(st.sampled_from(SNIPPETS), max_size=12).map("".join)
cuts = st.sets(st.integers(0, 80))


def pieces(chunks: list[str], *, from_start: bool = False) -> list[Piece]:
    parser = ReasoningParser(TAGS, from_start=from_start)
    return [piece for chunk in chunks for piece in parser.push(chunk)] + parser.flush()


def told(chunks: list[str], *, from_start: bool = False) -> tuple[str, str]:
    """The reasoning, and the answer proper."""
    read = pieces(chunks, from_start=from_start)
    return "".join(piece.reasoning for piece in read), "".join(piece.text for piece in read)


def cut(text: str, places: set[int]) -> list[str]:
    ends = [*sorted(place for place in places if place < len(text)), len(text)]
    return [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def expected(text: str, *, from_start: bool) -> tuple[str, str]:
    """The same, when all of it is there."""
    opened = re.match(r"(\s*)<think>", text)
    if opened is None and not from_start:
        return "", text
    space, rest = (opened[1], text[opened.end() :]) if opened else ("", text)
    reasoning, _, answer = rest.partition("</think>")
    return space + reasoning, answer


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>\nOne, two.\n</think>\n\nThree.", "\nOne, two.\n", "\n\nThree."),
        ("\n<think>Hm</think>", "\nHm", ""),
        ("<think>It never ends", "It never ends", ""),
        ("<think>Almost</thin", "Almost</thin", ""),
        ("No. <think>is a tag</think>", "", "No. <think>is a tag</think>"),
        ("<thinker>", "", "<thinker>"),
        ("<think>a</think>b<think>c</think>", "a", "b<think>c</think>"),
        ("<thi", "", "<thi"),
        ("  ", "", "  "),
        ("", "", ""),
    ],
)
def test_reasoning_is_what_stands_between_the_tags_at_the_beginning(text, reasoning, answer):
    assert told([text]) == (reasoning, answer)


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("Hm.</think>Yes.", "Hm.", "Yes."),
        ("\n<think>Hm.</think>Yes.", "\nHm.", "Yes."),
        ("It never ends", "It never ends", ""),
        ("<thi", "<thi", ""),
    ],
)
def test_an_answer_may_begin_within_its_reasoning(text, reasoning, answer):
    assert told([text], from_start=True) == (reasoning, answer)


def test_what_is_certain_is_told_at_once():
    parser = ReasoningParser(TAGS, from_start=False)
    assert parser.push("<thi") == []
    assert parser.push("nk>Let") == [Piece(7), Piece(10, reasoning="Let")]
    assert parser.push(" me <") == [Piece(14, reasoning=" me ")]
    assert parser.push("b></think") == [Piece(17, reasoning="<b>")]
    assert parser.push(">Yes") == [Piece(25), Piece(28, text="Yes")]
    assert parser.flush() == []


@settings(deadline=None)
@given(texts, cuts, st.booleans())
def test_no_character_is_lost_or_doubled_however_the_text_is_cut(text, places, from_start):
    assert told(cut(text, places), from_start=from_start) == expected(text, from_start=from_start)


@settings(deadline=None)
@given(texts, cuts, st.booleans())
def test_the_ends_of_the_pieces_go_up_to_the_end_of_the_text(text, places, from_start):
    ends = [piece.end for piece in pieces(cut(text, places), from_start=from_start)]
    assert ends == sorted(ends)
    assert ends[-1:] == ([len(text)] if text else [])

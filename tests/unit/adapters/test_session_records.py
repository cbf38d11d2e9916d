"""What is stored of a session, byte for byte: files and servers keep it longer than this code."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferapi.adapters.session_records import decode_head, decode_session, encode_head, encode_turn, summary
from inferapi.domain.chat import Session, SessionSummary
from inferapi.domain.errors import SessionUnreadable
from session_contract import ODD, S1, make_turn

SESSION = Session(S1, "Be brief.", 100.5, 200.25, (make_turn(1), make_turn(2)), 7, "How are you?", 3)
TEXTS = st.text(alphabet=st.characters(codec="utf-8"))


def decoded(session, elements):
    return decode_session(session.ref, decode_head(encode_head(session, fence=5)), elements)


def test_a_turn_is_stored_in_these_words():
    assert json.loads(encode_turn(make_turn(1))) == {
        "v": 1,
        "id": "turn-1",
        "user": "How are you?",
        "assistant": "Fine.",
        "model": "gpt2",
        "created_at": 1_700_000_001.5,
        "prompt_tokens": 11,
        "completion_tokens": 5,
        "finish_reason": "stop",
    }


def test_an_idempotency_key_is_stored_where_there_is_one():
    assert json.loads(encode_turn(replace(make_turn(1), idempotency_key="again")))["idempotency_key"] == "again"


def test_a_head_is_stored_in_these_words():
    assert json.loads(encode_head(SESSION, fence=5)) == {
        "v": 1,
        "system_prompt": "Be brief.",
        "version": 7,
        "fence": 5,
        "created_at": 100.5,
        "used_at": 200.25,
        "title": "How are you?",
        "turns": 2,
        "forgotten_turns": 3,
        "last_turn_id": "turn-2",
    }


def test_a_session_without_turns_has_no_last_one():
    assert decode_head(encode_head(replace(SESSION, turns=()), fence=5)).last_turn_id == ""


def test_an_element_is_one_line_whatever_was_said():
    turn = make_turn(user=ODD, assistant="a\nb")
    assert b"\n" not in encode_turn(turn)
    assert decoded(replace(SESSION, turns=(turn,)), [encode_turn(turn)]).turns == (turn,)


@given(TEXTS, TEXTS, st.one_of(st.none(), TEXTS), st.floats(allow_nan=False, allow_infinity=False))
def test_a_session_comes_back_as_it_was(user, assistant, key, at_s):
    turn = replace(make_turn(user=user, assistant=assistant), idempotency_key=key, created_at_s=at_s)
    session = replace(SESSION, turns=(turn, make_turn(2)), system_prompt=user, title=assistant, used_at_s=at_s)
    assert decoded(session, [encode_turn(turn) for turn in session.turns]) == session


def test_elements_are_read_as_text_too():
    head = decode_head(encode_head(SESSION, fence=5).decode())
    assert decode_session(S1, head, [encode_turn(turn).decode() for turn in SESSION.turns]) == SESSION


def test_a_line_of_a_list_needs_the_head_alone():
    line = SessionSummary("s1", "How are you?", 2, 100.5, 200.25)
    assert summary("s1", decode_head(encode_head(SESSION, fence=5))) == line


@pytest.mark.parametrize(
    "element",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"{}",
        encode_turn(make_turn(1))[:-1],
        encode_turn(make_turn(1)).replace(b'"prompt_tokens":11', b'"prompt_tokens":"11"'),
        encode_turn(make_turn(1)).replace(b'"v":1', b'"v":1,"later":true'),
        encode_turn(make_turn(1)).replace(b'"user"', b'"User"'),
        encode_turn(make_turn(1)).replace(b"How", b"\xff"),
        encode_head(SESSION, fence=5),
        b"[" * 100_000,
    ],
)
def test_a_damaged_turn_is_told(element):
    with pytest.raises(SessionUnreadable):
        decoded(SESSION, [encode_turn(make_turn(1)), element])


@pytest.mark.parametrize("head", [b"", b"{", b"null", b"7", b"\xff", b"{}", encode_turn(make_turn(1)), "\x00"])
def test_a_damaged_head_is_told(head):
    with pytest.raises(SessionUnreadable):
        decode_head(head)


@pytest.mark.parametrize("version", [0, 2, 99])
def test_another_version_is_told_and_named(version):
    changed = f'"v":{version}'.encode()
    with pytest.raises(SessionUnreadable, match=f"version {version}"):
        decode_head(encode_head(SESSION, fence=5).replace(b'"v":1', changed))
    with pytest.raises(SessionUnreadable, match=f"version {version}"):
        decoded(SESSION, [encode_turn(make_turn(1)), encode_turn(make_turn(2)).replace(b'"v":1', changed)])


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_missing_turn_or_one_too_many_is_told(count):
    with pytest.raises(SessionUnreadable, match=f"{count} turns where there should be 2"):
        decoded(SESSION, [encode_turn(make_turn(number)) for number in range(count)])

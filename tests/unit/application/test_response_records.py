"""What is stored of a response, word for word: stores keep it longer than this code."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferapi.application.response_items import CallItem, CallOutputItem, MessageItem, ReasoningItem
from inferapi.application.response_records import Response, decode_response, encode_asked, encode_response
from inferapi.domain.errors import SessionUnreadable
from inferapi.domain.generation import ChosenToken, TokenChance, Usage

TOKEN = ChosenToken(TokenChance(7, "é", b"\xc3\xa9", -0.5), (TokenChance(8, "\ufffd", b"\xff", float("-inf")),))
ASKED = (
    MessageItem("msg_1", "developer", ("Be brief.",)),
    MessageItem("msg_2", "user", ("One, ", "two.")),
    CallItem("fc_1", "call_1", "weather", '{"city":"Oslo"}'),
    CallOutputItem("fco_1", "call_1", "rain"),
)
OUTPUT = (
    ReasoningItem("rs_1", ("Hm.",), ("short",)),
    MessageItem("msg_3", "assistant", ("Rain.",), "incomplete", (TOKEN,)),
)
RESPONSE = Response(
    response_id="resp_1",
    created_at_s=100.5,
    completed_at_s=101.25,
    model="gpt2",
    asked=ASKED,
    output=OUTPUT,
    finish_reason="length",
    usage=Usage(10, 5, cached_tokens=3, reasoning_tokens=2),
    told={"metadata": {"a": "b"}, "tools": [], "temperature": 0.5, "user": None},
)
TURN = encode_response(RESPONSE, encode_asked(ASKED))
TEXTS = st.text(alphabet=st.characters(codec="utf-8"))


def test_a_response_is_a_turn():
    assert (TURN.turn_id, TURN.model, TURN.created_at_s) == ("resp_1", "gpt2", 101.25)
    assert (TURN.prompt_tokens, TURN.completion_tokens, TURN.finish_reason) == (10, 5, "length")


def test_the_question_is_stored_in_these_words():
    assert json.loads(TURN.user) == {
        "v": 1,
        "items": [
            {"type": "message", "id": "msg_1", "by": "developer", "texts": ["Be brief."], "is": "completed"},
            {"type": "message", "id": "msg_2", "by": "user", "texts": ["One, ", "two."], "is": "completed"},
            {
                "type": "call",
                "id": "fc_1",
                "call": "call_1",
                "name": "weather",
                "arguments": '{"city":"Oslo"}',
                "is": "completed",
            },
            {"type": "call_output", "id": "fco_1", "call": "call_1", "text": "rain"},
        ],
    }


def test_the_answer_is_stored_in_these_words():
    assert json.loads(TURN.assistant) == {
        "v": 1,
        "created_at": 100.5,
        "output": [
            {"type": "reasoning", "id": "rs_1", "texts": ["Hm."], "summaries": ["short"], "is": "completed"},
            {
                "type": "message",
                "id": "msg_3",
                "by": "assistant",
                "texts": ["Rain."],
                "is": "incomplete",
                "tokens": [[[7, "é", "c3a9", -0.5], [[8, "\ufffd", "ff", float("-inf")]]]],
            },
        ],
        "cached_tokens": 3,
        "reasoning_tokens": 2,
        "told": {"metadata": {"a": "b"}, "tools": [], "temperature": 0.5, "user": None},
    }


def test_a_response_comes_back_as_it_was():
    assert decode_response(TURN) == RESPONSE


@given(TEXTS, TEXTS, st.lists(TEXTS, max_size=3))
def test_whatever_was_said_comes_back_as_it_was(said, arguments, texts):
    items = (
        MessageItem("msg_1", "user", tuple(texts)),
        CallItem("fc_1", said, arguments, arguments),
        CallOutputItem("fco_1", said, said),
        ReasoningItem("rs_1", tuple(texts), (said,), "incomplete"),
    )
    response = replace(RESPONSE, asked=items, output=items, told={said: texts})
    assert decode_response(encode_response(response, encode_asked(items))) == response


def changed(side: str, old: str, new: str):
    text = getattr(TURN, side)
    assert old in text
    return replace(TURN, **{side: text.replace(old, new)})


@pytest.mark.parametrize(
    "turn",
    [
        replace(TURN, user=""),
        replace(TURN, user="How are you?", assistant="Fine."),
        replace(TURN, user="null"),
        replace(TURN, user="[]"),
        replace(TURN, assistant="{}"),
        replace(TURN, user=TURN.assistant, assistant=TURN.user),
        replace(TURN, user="[" * 100_000),
        changed("user", '"v":1', '"v":2'),
        changed("assistant", '"v":1', '"v":"1"'),
        changed("user", '"items":[', '"items":[null,'),
        changed("user", '"items":[', '"items":[{"type":"picture"},'),
        changed("user", '"texts":["Be brief."]', '"texts":[1]'),
        changed("user", '"texts":["Be brief."]', '"texts":"Be brief."'),
        changed("user", '"by":"developer"', '"by":"tool"'),
        changed("user", '"is":"completed"', '"is":["completed"]'),
        changed("user", '"arguments":', '"Arguments":'),
        changed("assistant", '"cached_tokens":3', '"cached_tokens":"3"'),
        changed("assistant", '"reasoning_tokens":2', '"reasoning_tokens":[]'),
        changed("assistant", '"created_at":100.5', '"created_at":null'),
        changed("assistant", '"told":{', '"told":[],"also":{'),
        changed("assistant", '"c3a9"', '"c3a"'),
        changed("assistant", '"tokens":[[', '"tokens":[[7,'),
        changed("assistant", '"tokens":[[[7', '"tokens":7,"more":[[[7'),
    ],
)
def test_what_is_damaged_or_of_a_later_version_is_told(turn):
    with pytest.raises(SessionUnreadable):
        decode_response(turn)

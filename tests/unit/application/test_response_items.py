"""Items become the messages that a model reads."""

from __future__ import annotations

import re

import pytest

from inferapi.application.response_items import (
    CallItem,
    CallOutputItem,
    Item,
    MessageItem,
    ReasoningItem,
    messages_of,
    new_item_id,
    remembered,
)
from inferapi.domain.chat import Message, ToolCall
from inferapi.domain.errors import InvalidRequest
from inferapi.domain.generation import ChosenToken, TokenChance

CALL = CallItem("fc_1", "call_1", "weather", '{"city":"Oslo"}')
OTHER_CALL = CallItem("fc_2", "call_2", "time", "{}")
OUTPUT = CallOutputItem("fco_1", "call_1", "rain")
OTHER_OUTPUT = CallOutputItem("fco_2", "call_2", "noon")
THOUGHT = ReasoningItem("rs_1", ("Hm.",), ("short",))


def said(text: str, speaker: str = "user") -> MessageItem:
    return MessageItem("msg_1", speaker, (text,))


@pytest.mark.parametrize(
    ("speaker", "role"),
    [("user", "user"), ("assistant", "assistant"), ("system", "system"), ("developer", "system")],
)
def test_who_spoke_is_the_role_and_developers_speak_as_the_system(speaker, role):
    assert messages_of(None, [said("Hi", speaker)]) == (Message(role, "Hi"),)


def test_the_parts_of_a_message_are_one_text():
    assert messages_of(None, [MessageItem("msg_1", "user", ("One, ", "two."))]) == (Message("user", "One, two."),)


def test_instructions_stand_in_front_of_everything():
    items = [said("Be kind.", "developer"), said("Hi")]
    assert messages_of("Be brief.", items) == (
        Message("system", "Be brief."),
        Message("system", "Be kind."),
        Message("user", "Hi"),
    )


def test_empty_instructions_are_instructions_too():
    assert messages_of("", [said("Hi")]) == (Message("system", ""), Message("user", "Hi"))


def test_what_was_said_and_the_calls_after_it_are_one_message():
    items = [said("Hi"), said("Let me see.", "assistant"), CALL, OTHER_CALL, OUTPUT, OTHER_OUTPUT]
    assert messages_of(None, items) == (
        Message("user", "Hi"),
        Message(
            "assistant",
            "Let me see.",
            tool_calls=(ToolCall("call_1", "weather", '{"city":"Oslo"}'), ToolCall("call_2", "time", "{}")),
        ),
        Message("tool", "rain", tool_call_id="call_1"),
        Message("tool", "noon", tool_call_id="call_2"),
    )


def test_a_call_without_a_word_is_a_message_without_text():
    assert messages_of(None, [said("Hi"), CALL])[1] == Message(
        "assistant", "", tool_calls=(ToolCall("call_1", "weather", '{"city":"Oslo"}'),)
    )


def test_calls_that_were_answered_and_later_ones_are_different_messages():
    messages = messages_of(None, [CALL, OUTPUT, OTHER_CALL])
    assert [message.role for message in messages] == ["assistant", "tool", "assistant"]
    assert [len(message.tool_calls) for message in messages] == [1, 0, 1]


def test_two_messages_of_the_assistant_stay_two():
    assert messages_of(None, [said("One.", "assistant"), said("Two.", "assistant")]) == (
        Message("assistant", "One."),
        Message("assistant", "Two."),
    )


def test_an_empty_message_of_the_assistant_is_one_all_the_same():
    items = [said("", "assistant"), said("Two.", "assistant")]
    assert messages_of(None, items) == (Message("assistant", ""), Message("assistant", "Two."))


def test_reasoning_is_not_shown_again():
    assert messages_of(None, [said("Hi"), THOUGHT, said("Hello", "assistant"), said("Bye")]) == (
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", "Bye"),
    )


def test_who_only_reasoned_has_had_its_turn():
    assert messages_of(None, [said("Hi"), THOUGHT, said("Well?")]) == (
        Message("user", "Hi"),
        Message("assistant", ""),
        Message("user", "Well?"),
    )


@pytest.mark.parametrize("items", [[OUTPUT], [OTHER_CALL, OUTPUT], [OUTPUT, CALL]])
def test_the_output_of_a_call_that_nobody_made_is_refused(items):
    with pytest.raises(InvalidRequest, match="input: a function_call_output has the call_id of no function_call"):
        messages_of(None, items)


def test_log_probabilities_are_not_carried_along():
    token = ChosenToken(TokenChance(1, "Hi", b"Hi", -0.5))
    told = MessageItem("msg_1", "assistant", ("Hi",), "incomplete", (token,))
    assert remembered([told, CALL]) == (MessageItem("msg_1", "assistant", ("Hi",), "incomplete"), CALL)


@pytest.mark.parametrize(
    ("kind", "prefix"), [(MessageItem, "msg"), (CallItem, "fc"), (CallOutputItem, "fco"), (ReasoningItem, "rs")]
)
def test_every_item_has_an_id_of_its_own(kind: type[Item], prefix: str):
    ids = {new_item_id(kind) for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch(rf"{prefix}_[0-9a-f]{{48}}", item_id) for item_id in ids)

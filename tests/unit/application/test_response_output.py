"""An answer's parts become output items."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferapi.application.answer_parts import Part, ToolCallPart
from inferapi.application.response_items import CallItem, MessageItem, ReasoningItem
from inferapi.application.response_output import GrowingOutput, ItemAdded, ItemDone, ItemGrew
from inferapi.domain.generation import ChosenToken, TokenChance

HELLO = ChosenToken(TokenChance(1, "Hello", b"Hello", -0.5))
THERE = ChosenToken(TokenChance(2, " there", b" there", -0.25))
END = ChosenToken(TokenChance(0, "", b"", -0.125))


def text(delta: str, *tokens: ChosenToken) -> Part:
    return Part(0, text=delta, tokens=tokens)


def reasoning(delta: str) -> Part:
    return Part(0, reasoning=delta)


def call(number: int, arguments: str, name: str | None = None) -> Part:
    return Part(0, tool_call=ToolCallPart(number, f"call_{number}" if name else None, name, arguments))


def end(reason: str = "stop", *tokens: ChosenToken) -> Part:
    return Part(0, finish_reason=reason, tokens=tokens)


def grown(*parts: Part):
    """The output, and every change on the way."""
    output = GrowingOutput()
    return output, [change for part in parts for change in output.add(part)]


def told(changes) -> list[tuple]:
    """The changes in short: what happened to which kind of item, and where."""
    short = []
    for change in changes:
        what = (type(change).__name__, change.index, type(change.item).__name__)
        short.append((*what, change.delta) if isinstance(change, ItemGrew) else what)
    return short


def test_text_is_one_message_that_grows():
    output, changes = grown(text("Hello"), text(" there"), end())
    assert told(changes) == [
        ("ItemAdded", 0, "MessageItem"),
        ("ItemGrew", 0, "MessageItem", "Hello"),
        ("ItemGrew", 0, "MessageItem", " there"),
        ("ItemDone", 0, "MessageItem"),
    ]
    (item,) = output.items
    assert item == MessageItem(changes[0].item.item_id, "assistant", ("Hello there",), "completed")
    assert changes[0].item == MessageItem(item.item_id, "assistant", (), "in_progress")
    assert changes[-1].item == item
    assert output.finish_reason == "stop"


def test_nothing_is_done_before_its_end():
    output, _ = grown(text("Hello"))
    assert (output.items, output.finish_reason) == ((), None)


def test_reasoning_text_and_calls_are_items_in_their_order():
    output, changes = grown(
        reasoning("Hm"),
        reasoning("."),
        text("Let me see."),
        call(0, "", "weather"),
        call(0, '{"a"'),
        call(0, ":1}"),
        call(1, "{}", "time"),
        end("tool_calls"),
    )
    thought, message, first, second = output.items
    assert (type(thought), thought.texts, thought.status) == (ReasoningItem, ("Hm.",), "completed")
    assert (type(message), message.texts) == (MessageItem, ("Let me see.",))
    assert (first.call_id, first.name, first.arguments, first.status) == ("call_0", "weather", '{"a":1}', "completed")
    assert (second.call_id, second.name, second.arguments) == ("call_1", "time", "{}")
    assert len({item.item_id for item in output.items}) == 4
    assert told(changes)[7:] == [
        ("ItemAdded", 2, "CallItem"),
        ("ItemGrew", 2, "CallItem", '{"a"'),
        ("ItemGrew", 2, "CallItem", ":1}"),
        ("ItemDone", 2, "CallItem"),
        ("ItemAdded", 3, "CallItem"),
        ("ItemGrew", 3, "CallItem", "{}"),
        ("ItemDone", 3, "CallItem"),
    ]


def test_an_added_call_has_its_name_and_no_arguments():
    _, changes = grown(call(0, '{"a":1}', "weather"))
    added = changes[0].item
    assert (added.call_id, added.name, added.arguments, added.status) == ("call_0", "weather", "", "in_progress")


def test_text_after_a_call_is_a_message_of_its_own():
    output, _ = grown(text("One."), call(0, "{}", "time"), text("Two."), end())
    assert [type(item) for item in output.items] == [MessageItem, CallItem, MessageItem]
    assert [item.texts for item in output.items if isinstance(item, MessageItem)] == [("One.",), ("Two.",)]


def test_the_end_may_come_with_the_last_text():
    output, changes = grown(Part(0, text="Hello", finish_reason="stop"))
    assert [type(change) for change in changes] == [ItemAdded, ItemGrew, ItemDone]
    assert output.items[0].texts == ("Hello",)


@pytest.mark.parametrize("last", [text("Hel"), reasoning("Hm"), call(0, '{"a', "weather")])
def test_what_was_cut_by_the_length_is_incomplete(last):
    output, _ = grown(text("One."), call(9, "{}", "time"), last, end("length"))
    assert [item.status for item in output.items] == ["completed", "completed", "incomplete"]


def test_an_answer_without_a_word_is_an_empty_message():
    output, changes = grown(end())
    assert told(changes) == [("ItemAdded", 0, "MessageItem"), ("ItemDone", 0, "MessageItem")]
    assert (output.items[0].texts, output.items[0].status) == (("",), "completed")


def test_log_probabilities_belong_to_the_message():
    output, changes = grown(text("Hello", HELLO), text(" there", THERE), end("stop", END))
    assert [change.tokens for change in changes if isinstance(change, ItemGrew)] == [(HELLO,), (THERE,), (END,)]
    assert output.items[0].tokens == (HELLO, THERE, END)
    assert output.items[0].texts == ("Hello there",)


def test_the_log_probability_of_an_end_without_text_is_told_too():
    output, _ = grown(end("stop", END))
    assert (output.items[0].texts, output.items[0].tokens) == (("",), (END,))


def test_log_probabilities_of_calls_and_reasoning_are_not_told():
    output, _ = grown(Part(0, reasoning="Hm", tokens=(HELLO,)), Part(0, tokens=(THERE,)), end("stop", END))
    assert [type(item) for item in output.items] == [ReasoningItem]


PIECES = st.lists(
    st.one_of(
        st.builds(lambda delta: ("text", delta), st.text(min_size=1, max_size=5)),
        st.builds(lambda delta: ("reasoning", delta), st.text(min_size=1, max_size=5)),
    ),
    max_size=20,
)


@given(PIECES, st.sampled_from(["stop", "length"]))
def test_nothing_is_lost_or_doubled_and_every_item_is_added_once_and_done_once(pieces, reason):
    parts = [text(delta) if kind == "text" else reasoning(delta) for kind, delta in pieces]
    output, changes = grown(*parts, end(reason))
    for kind, item_type in (("text", MessageItem), ("reasoning", ReasoningItem)):
        whole = "".join(delta for of, delta in pieces if of == kind)
        assert "".join(item.texts[0] for item in output.items if isinstance(item, item_type)) == whole
        deltas = [change.delta for change in changes if isinstance(change, ItemGrew)]
        assert "".join(deltas) == "".join(delta for _, delta in pieces)
    for kind in (ItemAdded, ItemDone):
        assert [change.index for change in changes if isinstance(change, kind)] == list(range(len(output.items)))
    assert [change.item for change in changes if isinstance(change, ItemDone)] == list(output.items)

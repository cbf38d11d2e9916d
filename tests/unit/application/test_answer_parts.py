from __future__ import annotations

import pytest

from fakes import chosen_token
from inferapi.application.answer_parts import Choice, Part, ToolCallPart, collected
from inferapi.domain.chat import ToolCall


def test_the_parts_of_each_choice_are_put_together_however_they_are_mixed():
    first, second = chosen_token("Hel", 1, 0), chosen_token("lo", 2, 0)
    choices = collected(
        [
            Part(1, reasoning="Hm"),
            Part(0, text="Hel", tokens=(first,)),
            Part(1, reasoning="m."),
            Part(0, text="lo"),
            Part(1, text="42", finish_reason="length"),
            Part(0, tokens=(second,), finish_reason="stop"),
        ]
    )
    assert choices == (
        Choice(0, "Hello", "", (), (first, second), "stop"),
        Choice(1, "42", "Hmm.", (), (), "length"),
    )


def test_the_arguments_of_a_call_are_put_together_under_the_name_of_its_first_part():
    (choice,) = collected(
        [
            Part(0, tool_call=ToolCallPart(0, "call_a", "weather", "")),
            Part(0, tool_call=ToolCallPart(0, None, None, '{"city": ')),
            Part(0, tool_call=ToolCallPart(1, "call_b", "clock", "{}")),
            Part(0, tool_call=ToolCallPart(0, None, None, '"Rome"}')),
            Part(0, finish_reason="tool_calls"),
        ]
    )
    assert choice.tool_calls == (ToolCall("call_a", "weather", '{"city": "Rome"}'), ToolCall("call_b", "clock", "{}"))
    assert (choice.text, choice.finish_reason) == ("", "tool_calls")


def test_a_choice_without_an_end_is_none():
    with pytest.raises(ValueError, match="choice 1"):
        collected([Part(0, text="Hi", finish_reason="stop"), Part(1, text="Hel")])

from __future__ import annotations

from contracts import make_turn
from inferapi.domain.chat import Message, Session


def test_a_new_session_holds_its_system_prompt_alone():
    assert Session("s1", "Be brief.").messages() == (Message("system", "Be brief."),)


def test_the_messages_of_a_session_are_its_turns_in_order():
    session = Session("s1", "Be brief.").with_turn(make_turn(1, user="One?", assistant="1."))
    session = session.with_turn(make_turn(2, user="Two?", assistant="2."))
    assert session.messages() == (
        Message("system", "Be brief."),
        Message("user", "One?"),
        Message("assistant", "1."),
        Message("user", "Two?"),
        Message("assistant", "2."),
    )


def test_a_turn_makes_a_new_version_and_leaves_the_old_one():
    before = Session("s1", "Be brief.")
    after = before.with_turn(make_turn())
    assert (before.version, len(before.turns)) == (0, 0)
    assert (after.version, len(after.turns)) == (1, 1)

from __future__ import annotations

from dataclasses import replace

import pytest

from inferapi.domain.chat import Message, Session, SessionChange, SessionLimits, SessionRef
from session_contract import S1, make_turn

ROOMY = SessionLimits(max_turns=1000, max_bytes=1_000_000)
NEW = Session(S1, "Be brief.")


def session_of(*numbers: int) -> Session:
    session = NEW
    for number in numbers:
        session = session.changed(SessionChange(make_turn(number)), float(number))
    return session


def ids(session: Session) -> list[str]:
    return [turn.turn_id for turn in session.turns]


def test_a_new_session_holds_its_system_prompt_alone():
    assert NEW.messages() == (Message("system", "Be brief."),)


def test_the_messages_of_a_session_are_its_turns_in_order():
    session = NEW.changed(SessionChange(make_turn(1, user="One?", assistant="1.")), 1.0)
    session = session.changed(SessionChange(make_turn(2, user="Two?", assistant="2.")), 2.0)
    assert session.messages() == (
        Message("system", "Be brief."),
        Message("user", "One?"),
        Message("assistant", "1."),
        Message("user", "Two?"),
        Message("assistant", "2."),
    )


def test_a_change_makes_a_new_version_and_leaves_the_old_one():
    after = NEW.changed(SessionChange(make_turn()), 100.0)
    assert (NEW.version, NEW.turns) == (0, ())
    assert (after.version, ids(after)) == (1, ["turn-1"])


def test_a_session_is_made_at_its_first_write_and_used_at_its_last():
    session = session_of(3, 5, 8)
    assert (session.created_at_s, session.used_at_s, session.version) == (3.0, 8.0, 3)


def test_a_session_made_at_the_epoch_is_not_made_again():
    session = NEW.changed(SessionChange(make_turn()), 0.0).changed(SessionChange(make_turn(2)), 9.0)
    assert (session.created_at_s, session.used_at_s) == (0.0, 9.0)


def test_turns_are_dropped_at_both_ends_and_then_one_is_added():
    session = session_of(1, 2, 3, 4, 5).changed(SessionChange(make_turn(6), 2, 1), 6.0)
    assert (ids(session), session.forgotten_turns) == (["turn-3", "turn-4", "turn-6"], 2)


def test_only_turns_dropped_for_the_limits_are_forgotten_ones():
    session = session_of(1, 2, 3).changed(SessionChange(dropped_newest=2), 4.0)
    assert (ids(session), session.forgotten_turns) == (["turn-1"], 0)


@pytest.mark.parametrize(("oldest", "newest"), [(3, 0), (0, 3), (2, 1)])
def test_all_turns_can_be_dropped(oldest, newest):
    assert session_of(1, 2, 3).changed(SessionChange(None, oldest, newest), 4.0).turns == ()


def test_the_title_is_how_the_session_began_and_stays():
    session = NEW.changed(SessionChange(make_turn(user="  Who\n\tare   you? ")), 1.0)
    session = session.changed(SessionChange(make_turn(2, user="Why?"), dropped_oldest=1), 2.0)
    assert session.title == "Who are you?"


def test_a_title_is_short():
    assert NEW.changed(SessionChange(make_turn(user="ab " * 1000)), 1.0).title == ("ab " * 27)[:80]


def test_a_session_without_a_word_has_no_title():
    assert NEW.changed(SessionChange(make_turn(user=" \n ")), 1.0).title == ""
    assert NEW.copy(S1, (), 1.0).title == ""


def test_a_turn_weighs_its_texts_in_utf8():
    assert make_turn(user="é", assistant="漢🙂").size_bytes == 2 + 3 + 4


def test_within_the_limits_nothing_is_forgotten():
    assert session_of(1, 2).appending(make_turn(3), ROOMY) == SessionChange(make_turn(3))


@pytest.mark.parametrize(("max_turns", "dropped"), [(4, 0), (3, 1), (2, 2), (1, 3)])
def test_beyond_so_many_turns_the_oldest_are_forgotten(max_turns, dropped):
    change = session_of(1, 2, 3).appending(make_turn(4), replace(ROOMY, max_turns=max_turns))
    assert change == SessionChange(make_turn(4), dropped_oldest=dropped)
    assert len(session_of(1, 2, 3).changed(change, 4.0).turns) == max_turns


@pytest.mark.parametrize(("max_bytes", "dropped"), [(40, 0), (39, 1), (30, 1), (29, 2), (10, 3)])
def test_beyond_so_many_bytes_the_oldest_are_forgotten(max_bytes, dropped):
    turns = [make_turn(number, user="12345", assistant="67890") for number in range(4)]
    session = replace(NEW, turns=tuple(turns[:3]), version=3)
    change = session.appending(turns[3], replace(ROOMY, max_bytes=max_bytes))
    assert change == SessionChange(turns[3], dropped_oldest=dropped)


def test_a_small_old_turn_is_not_kept_before_a_large_one_that_is_forgotten():
    small, large, new = make_turn(1, user=""), make_turn(2, user="x" * 100), make_turn(3)
    change = replace(NEW, turns=(small, large), version=2).appending(new, replace(ROOMY, max_bytes=60))
    assert change.dropped_oldest == 2


def test_a_turn_larger_than_the_limit_is_kept_alone():
    large = make_turn(3, user="x" * 100)
    change = session_of(1, 2).appending(large, replace(ROOMY, max_bytes=50))
    after = session_of(1, 2).changed(change, 3.0)
    assert (change.dropped_oldest, after.turns, after.forgotten_turns) == (2, (large,), 2)


def test_a_copy_is_a_new_session_with_the_same_words():
    origin = replace(session_of(1, 2, 3), forgotten_turns=4)
    ref = SessionRef("", "s2")
    copy = origin.copy(ref, origin.turns[:2], 50.0)
    assert (copy.ref, copy.system_prompt, ids(copy)) == (ref, "Be brief.", ["turn-1", "turn-2"])
    assert (copy.version, copy.created_at_s, copy.used_at_s, copy.forgotten_turns) == (1, 50.0, 50.0, 4)
    assert copy.title == "How are you?"

"""The mixed load: everything in it comes up, the same seed asks for the same, and nothing that it stores grows."""

from __future__ import annotations

import json
from collections import Counter

from benchmarks.faults.mix import MOST_TURNS, Mixed

MODEL = "org/name"
ASKS = 2000


def asks(seed: int):
    mixed = Mixed(seed, MODEL)
    return [mixed.next() for _ in range(ASKS)], mixed.kinds


def test_every_kind_comes_up_and_each_request_is_of_one_kind():
    asked, kinds = asks(1)
    assert len(kinds) == 11
    assert min(kinds.values()) >= ASKS / 100
    assert kinds.total() == len(asked)


def test_the_same_seed_asks_for_the_same_and_another_for_something_else():
    assert asks(1) == asks(1)
    assert asks(1)[0] != asks(2)[0]


def test_a_session_is_deleted_before_it_grows_and_belongs_to_one_client():
    turns, longest = 0, 0
    for ask in asks(3)[0]:
        if ask.method == "DELETE":
            assert ask.path == "/sessions/soak-3"
            turns = 0
        elif ask.path == "/chat":
            assert ask.body["session_id"] == "soak-3"
            turns += 1
        longest = max(longest, turns)
    assert longest == MOST_TURNS


def test_what_is_a_mistake_is_to_be_refused_and_everything_else_may_be_answered():
    wrong = [ask for ask in asks(4)[0] if not ask.answer_is_right]
    assert {code for ask in wrong for code in ask.expects} == {
        "invalid_request",
        "context_length_exceeded",
        "queue_full",
        "session_not_found",
        "model_not_found",
    }
    assert Counter(ask.path for ask in wrong).keys() == {
        "/infer",
        "/load_model",
        "/sessions/nobody",
        "/v1/models/no-such-model",
    }


def test_every_body_is_json_within_the_limit_of_a_body():
    bodies = [json.dumps(ask.body) for ask in asks(5)[0] if ask.body is not None]
    assert 1000 < max(map(len, bodies)) < 1_048_576


def test_clients_leave_streams_and_whole_answers():
    left = [ask for ask in asks(6)[0] if ask.leaves_after_s is not None]
    assert {bool(ask.body.get("stream")) for ask in left} == {True, False}
    assert all(0 < ask.leaves_after_s < 2 for ask in left)

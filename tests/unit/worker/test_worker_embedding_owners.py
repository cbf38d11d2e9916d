"""Texts of several owners on their way to vectors: owners first, then the requests of each."""

from __future__ import annotations

from collections import deque

import pytest

from inferapi.domain.errors import QueueFull
from inferapi.worker.embedding import EmbeddingJob, EmbeddingTurns


def job(request_id: int, owner: str, count: int = 1) -> EmbeddingJob:
    return EmbeddingJob(request_id, deque([[request_id]] * count), owner)


def turns(most_waiting: int = 100) -> EmbeddingTurns:
    return EmbeddingTurns(lambda tokens: [1.0], most_waiting)


def order(waiting: EmbeddingTurns) -> list[int]:
    """Whose text comes when, until it is idle."""
    said = []
    while not waiting.is_idle:
        said.append(waiting.step().request_id)
    return said


def test_owners_take_turns_and_within_an_owner_its_requests():
    waiting = turns()
    waiting.submit(job(1, "ann", 3))
    waiting.submit(job(2, "ann", 2))
    waiting.submit(job(3, "bob", 3))

    assert order(waiting) == [1, 3, 2, 3, 1, 3, 2, 1]


def test_many_requests_of_one_owner_hold_up_another_for_one_text():
    waiting = turns()
    for request_id in range(50):
        waiting.submit(job(request_id, "flood", 4))
    waiting.step()
    waiting.submit(job(99, "ann"))

    assert order(waiting).index(99) == 1


def test_a_cancelled_job_costs_its_owner_no_turn():
    waiting = turns()
    waiting.submit(job(1, "ann", 2))
    waiting.submit(job(2, "ann", 2))
    waiting.submit(job(3, "bob", 2))
    waiting.cancel(1)

    assert order(waiting) == [2, 3, 2, 3]


def test_a_full_queue_gives_a_place_of_the_flood_to_another_owner():
    waiting = turns(most_waiting=3)
    for request_id in (1, 2, 3):
        assert waiting.submit(job(request_id, "flood")) == []

    (refused,) = waiting.submit(job(4, "ann"))

    assert (refused.request_id, type(refused.item), refused.item.facts) == (3, QueueFull, {"waiting": 3})
    assert order(waiting) == [1, 4, 2]


def test_who_has_vectors_already_does_not_give_way_but_who_came_last():
    waiting = turns(most_waiting=3)
    for request_id in (1, 2, 3):
        waiting.submit(job(request_id, "flood", 2))
    waiting.step()  # of the first one, which is behind the others now

    (refused,) = waiting.submit(job(4, "ann"))

    assert refused.request_id == 3
    assert order(waiting) == [2, 4, 1, 2]


def test_an_owner_of_the_longest_queue_is_refused_itself():
    waiting = turns(most_waiting=2)
    waiting.submit(job(1, "ann"))
    waiting.submit(job(2, "bob"))
    for owner in ("ann", "bob", "cid"):
        with pytest.raises(QueueFull):
            waiting.submit(job(3, owner))


def test_a_job_without_texts_displaces_nobody():
    waiting = turns(most_waiting=2)
    for request_id in (1, 2):
        waiting.submit(job(request_id, "flood"))

    assert waiting.submit(job(3, "ann", 0)) == []
    assert order(waiting) == [1, 2]

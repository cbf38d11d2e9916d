"""Between threads owners take turns, too: what waits to be encoded, and what gives way."""

from __future__ import annotations

import queue
import threading

import pytest

from inferapi.domain.generation import EmbeddingRequest
from inferapi.engine.loop import Output
from inferapi.worker.embedding import EmbeddingJob, TextThread
from inferapi.worker.inbox import FairInbox
from inferapi.worker.messages import Embed

PATIENCE_S = 30.0


def message(request_id: int, owner: str, text: str = "x") -> Embed:
    return Embed(request_id, EmbeddingRequest((text,), 0.0, 1.0, salt=owner))


def test_owners_take_turns():
    inbox: FairInbox[Embed] = FairInbox()
    for request_id, owner in enumerate(("flood", "flood", "flood", "ann")):
        inbox.put(message(request_id, owner))
    assert [inbox.get().request_id for _ in range(4)] == [0, 3, 1, 2]


def test_who_waits_for_something_gets_what_comes():
    inbox: FairInbox[Embed] = FairInbox()
    got: queue.SimpleQueue[Embed] = queue.SimpleQueue()
    waiting = threading.Thread(target=lambda: got.put(inbox.get()), daemon=True)
    waiting.start()
    inbox.put(message(7, "ann"))
    assert got.get(timeout=PATIENCE_S).request_id == 7
    waiting.join(PATIENCE_S)


def test_the_last_of_a_flood_gives_way_and_is_there_no_more():
    inbox: FairInbox[Embed] = FairInbox()
    for request_id in range(3):
        inbox.put(message(request_id, "flood"))
    assert inbox.displaced_by("flood") is None
    displaced = inbox.displaced_by("ann")
    inbox.put(message(9, "ann"))
    assert displaced is not None
    assert (displaced.request_id, [inbox.get().request_id for _ in range(3)]) == (2, [0, 9, 1])


class HeldTexts:
    """A ``TextThread`` that stands at its first text until ``go_on``."""

    def __init__(self) -> None:
        self.results: queue.SimpleQueue[EmbeddingJob | Output] = queue.SimpleQueue()
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.thread = TextThread(self._encode, deliver=self.results.put, on_end=lambda: None)
        self.thread.start()
        self.thread.put(message(0, "flood", "hold"))
        assert self.begun.wait(PATIENCE_S)

    def _encode(self, text: str) -> list[int]:
        if text == "hold":
            self.begun.set()
            assert self.go_on.wait(PATIENCE_S)
        return [1]

    def order(self, count: int) -> list[int]:
        self.go_on.set()
        return [self.results.get(timeout=PATIENCE_S).request_id for _ in range(count)]


@pytest.fixture
def held() -> HeldTexts:
    return HeldTexts()


def test_a_flood_of_texts_to_encode_is_one_ahead_of_another_owner(held: HeldTexts):
    for request_id in range(1, 6):
        held.thread.put(message(request_id, "flood"))
    held.thread.put(message(9, "ann"))
    assert held.order(7) == [0, 1, 9, 2, 3, 4, 5]


def test_what_gave_way_is_not_encoded(held: HeldTexts):
    for request_id in range(1, 4):
        held.thread.put(message(request_id, "flood"))
    displaced = held.thread.displaced_by("ann")
    held.thread.put(message(9, "ann"))
    held.thread.cancel(3)  # its client hears of it only now
    assert (displaced, held.thread.displaced_by("flood")) == (3, None)
    assert held.order(4) == [0, 1, 9, 2]
    assert held.results.empty()

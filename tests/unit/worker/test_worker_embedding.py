"""Texts on their way to vectors, in the worker: whose turn it is, and what becomes of those that fail."""

from __future__ import annotations

import errno
import queue
import struct
import threading
from collections import deque
from collections.abc import Sequence

import pytest

from inferapi.domain.errors import ContextWindowExceeded, EmbeddingsRefused, InvalidRequest, OutOfMemory, QueueFull
from inferapi.domain.generation import EmbeddingRequest
from inferapi.engine.loop import Output
from inferapi.worker.embedding import EmbeddingJob, EmbeddingTurns, TextThread
from inferapi.worker.messages import Embed, Embedded

PATIENCE_S = 30.0


def job(request_id: int, *texts: list[int]) -> EmbeddingJob:
    return EmbeddingJob(request_id, deque(texts))


def embed(tokens: Sequence[int]) -> list[float]:
    """As many numbers as the sum says, so that it shows which text was computed."""
    return [float(sum(tokens)), 0.5]


def turns(embed=embed, most_waiting: int = 8) -> EmbeddingTurns:
    return EmbeddingTurns(embed, most_waiting)


def all_of(waiting: EmbeddingTurns) -> list:
    """What comes until it is idle."""
    said = []
    while not waiting.is_idle:
        said.append(waiting.step())
    return said


def vector(message: Embedded) -> tuple[float, ...]:
    return struct.unpack(f"<{len(message.vector) // 4}f", message.vector)


def test_a_step_computes_one_text_and_each_request_has_its_turn() -> None:
    waiting = turns()
    waiting.submit(job(1, [1], [2, 1], [4]))
    waiting.submit(job(2, [10]))
    first = waiting.step()
    waiting.submit(job(3, [20, 1], [30]))

    said = [first, *all_of(waiting)]

    assert [(message.request_id, vector(message)[0]) for message in said] == [
        (1, 1.0),
        (2, 10.0),
        (1, 3.0),
        (3, 21.0),
        (1, 4.0),
        (3, 30.0),
    ]
    assert [message.prompt_tokens for message in said] == [1, 1, 2, 2, 1, 1]
    assert vector(said[0]) == (1.0, 0.5)


def test_with_nothing_to_do_a_step_says_nothing() -> None:
    waiting = turns()

    assert waiting.step() is None
    waiting.submit(job(1))
    assert waiting.is_idle


def test_a_cancelled_job_is_dropped_where_it_is_and_the_others_go_on() -> None:
    waiting = turns()
    for request_id in (1, 2, 3):
        waiting.submit(job(request_id, [request_id], [10 * request_id]))
    begun = waiting.step()

    waiting.cancel(1)
    waiting.cancel(2)
    waiting.cancel(99)

    assert (begun.request_id, [message.request_id for message in all_of(waiting)]) == (1, [3, 3])


def test_more_jobs_than_may_wait_are_refused() -> None:
    waiting = turns(most_waiting=2)
    waiting.submit(job(1, [1]))
    waiting.submit(job(2, [2]))

    with pytest.raises(QueueFull) as caught:
        waiting.submit(job(3, [3]))

    assert caught.value.facts == {"waiting": 2}
    assert [message.request_id for message in all_of(waiting)] == [1, 2]


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (EmbeddingsRefused(model="m", reason="it overflows"), EmbeddingsRefused),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), OutOfMemory),
        (MemoryError(), OutOfMemory),
    ],
)
def test_a_text_that_fails_fails_its_request_and_no_other(raised: Exception, kind: type[Exception]) -> None:
    def failing(tokens: Sequence[int]) -> list[float]:
        if tokens == [13]:
            raise raised
        return embed(tokens)

    waiting = turns(failing)
    waiting.submit(job(1, [13], [1], [1]))
    waiting.submit(job(2, [2], [3]))

    failed, *said = all_of(waiting)

    assert (failed.request_id, type(failed.item)) == (1, kind)
    assert [(message.request_id, vector(message)[0]) for message in said] == [(2, 2.0), (2, 3.0)]


def test_an_error_that_nobody_foresaw_is_not_hidden() -> None:
    def broken(tokens: Sequence[int]) -> list[float]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    waiting = turns(broken)
    waiting.submit(job(1, [1]))

    with pytest.raises(RuntimeError, match="mat1"):
        waiting.step()


class Encoding:
    """A ``TextThread`` whose tokenizer makes a token of each character, and fails as its script says."""

    def __init__(self) -> None:
        self.results: queue.SimpleQueue[EmbeddingJob | Output] = queue.SimpleQueue()
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.encoded: list[str] = []
        self.ended = threading.Event()
        self.errors: dict[str, BaseException] = {}
        self.thread = TextThread(self._encode, deliver=self.results.put, on_end=self.ended.set)
        self.thread.start()

    def _encode(self, text: str) -> list[int]:
        self.encoded.append(text)
        if text == "wait":
            self.begun.set()
            assert self.go_on.wait(PATIENCE_S)
        if text in self.errors:
            raise self.errors[text]
        return [ord(character) for character in text]

    def put(self, request_id: int, *texts: str) -> None:
        self.thread.put(Embed(request_id, EmbeddingRequest(texts, 0.0, 1.0)))

    def next(self) -> EmbeddingJob | Output:
        return self.results.get(timeout=PATIENCE_S)


@pytest.fixture
def encoding() -> Encoding:
    return Encoding()


def test_texts_are_encoded_in_order(encoding: Encoding) -> None:
    encoding.put(1, "ab", "c")
    encoding.put(2, "d")

    assert [encoding.next(), encoding.next()] == [job(1, [97, 98], [99]), job(2, [100])]


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (ContextWindowExceeded(prompt_tokens=9, max_new_tokens=0, context_window_tokens=8), ContextWindowExceeded),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), OutOfMemory),
        (ValueError("odd"), InvalidRequest),
        (KeyboardInterrupt("as a panic in Rust, no Exception"), InvalidRequest),
    ],
)
def test_a_text_that_cannot_be_encoded_refuses_its_request_and_the_next_is_encoded(
    encoding: Encoding, raised: BaseException, kind: type[Exception]
) -> None:
    encoding.errors["bad"] = raised
    encoding.put(1, "a", "bad", "never")
    encoding.put(2, "b")

    refused, following = encoding.next(), encoding.next()

    assert isinstance(refused, Output)
    assert (refused.request_id, type(refused.item)) == (1, kind)
    assert following == job(2, [98])
    assert encoding.encoded == ["a", "bad", "b"]
    assert not encoding.ended.is_set()


def test_what_nobody_waits_for_is_not_encoded_to_its_end(encoding: Encoding) -> None:
    encoding.put(1, "wait", "x", "y")
    encoding.put(2, "b")
    assert encoding.begun.wait(PATIENCE_S)

    encoding.thread.cancel(1)
    encoding.thread.cancel(99)
    encoding.go_on.set()
    results = [encoding.next(), encoding.next()]

    assert [result.request_id for result in results] == [1, 2]
    assert encoding.encoded == ["wait", "b"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ends_says_so() -> None:
    ended = threading.Event()

    def refuse(_: EmbeddingJob | Output) -> None:
        raise SystemExit

    before = {*threading.enumerate()}
    thread = TextThread(lambda _: [1], deliver=refuse, on_end=ended.set)
    thread.start()
    thread.put(Embed(1, EmbeddingRequest(("a",), 0.0, 1.0)))

    assert ended.wait(PATIENCE_S)
    for running in {*threading.enumerate()} - before:
        running.join(PATIENCE_S)  # its end is told in this test, not in the next one

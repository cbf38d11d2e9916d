"""The API process's end of a worker, with a socket in place of the worker."""

from __future__ import annotations

import asyncio
import socket
import struct
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import TIMINGS, make_facts, settle
from inferapi.adapters.prometheus_metrics import PrometheusMetrics
from inferapi.domain.errors import EmbeddingsRefused, GenerationAborted, GenerationTimeout, ModelCrashed, QueueFull
from inferapi.domain.generation import (
    Chunk,
    EmbeddingRequest,
    Embeddings,
    Finish,
    FinishReason,
    GenerationRequest,
    Prompt,
    SamplingParams,
    Usage,
)
from inferapi.domain.model import EngineLoad
from inferapi.domain.states import ModelState
from inferapi.domain.telemetry import FirstToken, StepTally
from inferapi.logs import on_behalf_of
from inferapi.worker.client import WorkerEngine
from inferapi.worker.client_connection import WorkerConnection
from inferapi.worker.heartbeat import Heartbeat
from inferapi.worker.messages import (
    Beat,
    Cancel,
    Embed,
    Embedded,
    Failure,
    Generate,
    Progress,
    StepDone,
    ToWorker,
    frame,
)
from metrics_page import MetricsPage

FINISH = Finish(FinishReason.STOP, Usage(1, 2), TIMINGS)
MESSAGES = [
    Beat(1),
    Progress(ModelState.LOADING, 5, 10),
    StepDone(
        EngineLoad(2, 1, 0.5), [(1, Chunk("é🙂")), (2, Chunk("", FINISH))], [(3, Failure("QueueFull", {"waiting": 1}))]
    ),
    StepDone(EngineLoad(), [], []),
    Beat(2**40),
]


class Worker:
    """The worker's end of the socket, in the hands of a test."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    async def says(self, *messages) -> None:
        """Send, and let the other end hear it."""
        self.sock.sendall(b"".join(frame(message) for message in messages))
        await settle()

    async def hears(self) -> list:
        """All messages that came."""
        await settle()
        data, messages = self.sock.recv(1 << 20), []
        decoder = msgspec.msgpack.Decoder(ToWorker)
        while data:
            end = 4 + int.from_bytes(data[:4], "big")
            messages.append(decoder.decode(data[4:end]))
            data = data[end:]
        return messages


@pytest.fixture
async def ends():
    """A connection and its worker."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    connection = await WorkerConnection.open(ours, Heartbeat(1e6, lambda: None))
    yield connection, Worker(theirs)
    connection.abort()
    theirs.close()
    await connection.wait_lost()


@pytest.fixture
def engine(ends):
    connection, worker = ends

    async def end_worker() -> None:
        worker.sock.close()

    return WorkerEngine(make_facts(), connection, end_worker, memory_bytes=7), worker


def asking(within_s: float = 60.0) -> GenerationRequest:
    now_s = asyncio.get_running_loop().time()
    return GenerationRequest(Prompt(text="Hi"), SamplingParams(), now_s, now_s + within_s)


def embedding(*texts: str, within_s: float = 60.0) -> EmbeddingRequest:
    now_s = asyncio.get_running_loop().time()
    return EmbeddingRequest(texts, now_s, now_s + within_s)


def embedded(request_id: int, *vector: float, tokens: int = 1) -> Embedded:
    return Embedded(request_id, struct.pack(f"<{len(vector)}f", *vector), tokens)


async def read(answer) -> list[Chunk]:
    return [chunk async for chunk in answer]


@given(borders=st.lists(st.integers(0, 400), max_size=40))
def test_messages_arrive_whole_and_in_order_however_the_bytes_are_cut(borders: list[int]) -> None:
    async def heard() -> list:
        connection, messages = WorkerConnection(Heartbeat(1e6, lambda: None)), []
        connection.listen(messages.append)
        data = b"".join(frame(message) for message in MESSAGES)
        points = sorted({0, len(data), *(min(border, len(data)) for border in borders)})
        for start, end in pairwise(points):
            connection.data_received(data[start:end])
        return messages

    assert asyncio.run(heard()) == MESSAGES


async def test_what_came_before_there_is_a_listener_waits_for_it_in_order(ends) -> None:
    connection, worker = ends
    await worker.says(*MESSAGES)
    first = await connection.receive()
    heard: list = []
    connection.listen(heard.append)
    await worker.says(Beat(3))
    assert [first, *heard] == [*MESSAGES, Beat(3)]


async def test_a_worker_that_goes_is_told_as_none(ends) -> None:
    connection, worker = ends
    worker.sock.close()
    assert await connection.receive() is None


async def test_a_worker_that_says_what_is_no_message_is_a_worker_that_is_gone(ends) -> None:
    connection, worker = ends
    worker.sock.sendall(frame(Beat(1)) + b"\x00\x00\x00\x02\xc1\xc1" + frame(Beat(2)))
    assert await connection.receive() == Beat(1)
    assert await connection.receive() is None
    connection.send(Cancel(1))  # to nobody, without an error


async def test_the_worker_is_told_whose_request_it_is(engine) -> None:
    engine, worker = engine
    asks = (lambda: read(engine.generate(asking())), lambda: engine.embed(embedding("x")))
    for ask in asks:
        with on_behalf_of(("mine", "its trace")):
            asked = asyncio.create_task(ask())
        (message,) = await worker.hears()
        assert message.origin == ("mine", "its trace")
        asked.cancel()
        await worker.hears()


async def test_two_answers_come_side_by_side_each_to_whom_it_is_for(engine) -> None:
    engine, worker = engine
    answers = [asyncio.create_task(read(engine.generate(asking()))) for _ in range(2)]
    first, second = [message.request_id for message in await worker.hears()]
    await worker.says(
        StepDone(EngineLoad(2), [(first, Chunk("a")), (second, Chunk("x"))], []),
        StepDone(EngineLoad(2), [(second, Chunk("y", FINISH)), (first, Chunk("b")), (99, Chunk("nobody's"))], []),
        StepDone(EngineLoad(1), [(first, Chunk("", FINISH))], []),
    )
    assert [[chunk.text for chunk in await answer] for answer in answers] == [["a", "b", ""], ["x", "y"]]
    assert engine.load == EngineLoad(1, memory_bytes=7)


async def test_the_load_is_the_last_one_told_with_the_memory_of_the_last_beat(engine) -> None:
    engine, worker = engine
    before = engine.load
    await worker.says(Beat(1000), StepDone(EngineLoad(3, 2, 0.5), [], []))
    assert (before, engine.load) == (EngineLoad(memory_bytes=7), EngineLoad(3, 2, 0.5, memory_bytes=1000))


async def test_what_steps_computed_is_told_under_the_models_name_whoever_still_reads(ends) -> None:
    connection, worker = ends
    metrics = PrometheusMetrics()
    engine = WorkerEngine(make_facts("org/name"), connection, asyncio.Event().wait, telemetry=metrics)
    await worker.says(
        StepDone(EngineLoad(1), [], [], StepTally(7, 4, 1, (FirstToken(0.5, 1.5),))),
        StepDone(EngineLoad(1), [(99, Chunk("nobody's"))], [], StepTally(generation_tokens=2, gaps=((0.25, 2),))),
        StepDone(EngineLoad(), [], []),
    )
    page = MetricsPage(metrics.page([]))
    names = ("prompt_tokens_total", "prefix_cache_hit_tokens_total", "generation_tokens_total")
    assert [page.value(name, model="org/name") for name in names] == [7.0, 4.0, 3.0]
    assert page.value("inter_token_latency_seconds_count", model="org/name") == 2.0
    assert engine.load == EngineLoad()


async def test_a_failure_is_raised_where_its_answer_is_read(engine) -> None:
    engine, worker = engine
    answer = asyncio.create_task(read(engine.generate(asking())))
    (message,) = await worker.hears()
    await worker.says(StepDone(EngineLoad(), [], [(message.request_id, Failure.of(QueueFull(waiting=3)))]))
    with pytest.raises(QueueFull):
        await answer


async def test_an_answer_that_is_not_read_to_its_end_is_cancelled(engine) -> None:
    engine, worker = engine
    answer = engine.generate(asking())
    first = asyncio.ensure_future(anext(answer))
    (message,) = await worker.hears()
    await worker.says(StepDone(EngineLoad(1), [(message.request_id, Chunk("a")), (message.request_id, Chunk("b"))], []))
    assert await first == Chunk("a")
    await answer.aclose()
    assert isinstance(message, Generate)
    assert await worker.hears() == [Cancel(message.request_id)]


async def test_an_answer_is_given_up_at_its_deadline_and_cancelled(engine, loop_time) -> None:
    engine, worker = engine
    answer = asyncio.create_task(read(engine.generate(asking(within_s=30.0))))
    (message,) = await worker.hears()
    await loop_time(31.0)
    with pytest.raises(GenerationTimeout):
        await answer
    assert await worker.hears() == [Cancel(message.request_id)]


async def test_what_came_before_a_crash_is_read_and_then_the_crash(engine) -> None:
    engine, worker = engine
    answer = engine.generate(asking())
    first = asyncio.ensure_future(anext(answer))
    (message,) = await worker.hears()
    await worker.says(StepDone(EngineLoad(1), [(message.request_id, Chunk("a")), (message.request_id, Chunk("b"))], []))
    worker.sock.close()
    await settle()
    assert [await first, await anext(answer)] == [Chunk("a"), Chunk("b")]
    with pytest.raises(ModelCrashed):
        await anext(answer)
    with pytest.raises(ModelCrashed):
        await read(engine.generate(asking()))
    assert (engine.is_closed, engine.load) == (True, EngineLoad())


async def test_an_engine_that_is_closed_ends_its_answers_and_takes_no_more(engine) -> None:
    engine, worker = engine
    answer = asyncio.create_task(read(engine.generate(asking())))
    await worker.hears()
    await engine.aclose()
    with pytest.raises(GenerationAborted):
        await answer
    with pytest.raises(GenerationAborted):
        await read(engine.generate(asking()))


async def test_vectors_come_in_the_order_of_their_texts_beside_those_of_others(engine) -> None:
    engine, worker = engine
    first, second = (asyncio.create_task(engine.embed(embedding(*texts))) for texts in (("a", "b"), ("c",)))
    asked = await worker.hears()
    one, two = (message.request_id for message in asked)
    await worker.says(
        embedded(one, 0.5, -0.25, tokens=3), embedded(two, 1.0, 0.0), embedded(99, 9.0), embedded(one, 0.0, 1.0)
    )
    assert [type(message) for message in asked] == [Embed, Embed]
    assert [message.request.texts for message in asked] == [("a", "b"), ("c",)]
    assert await first == Embeddings(((0.5, -0.25), (0.0, 1.0)), 4)
    assert await second == Embeddings(((1.0, 0.0),), 1)
    with pytest.raises(BlockingIOError):  # nothing is cancelled that is done
        await worker.hears()


async def test_vectors_and_answers_do_not_disturb_each_other(engine) -> None:
    engine, worker = engine
    answer = asyncio.create_task(read(engine.generate(asking())))
    vectors = asyncio.create_task(engine.embed(embedding("a")))
    said, asked = await worker.hears()
    await worker.says(
        StepDone(EngineLoad(1), [(said.request_id, Chunk("a"))], []),
        embedded(asked.request_id, 1.0),
        StepDone(EngineLoad(), [(said.request_id, Chunk("b", FINISH))], []),
    )
    assert [chunk.text for chunk in await answer] == ["a", "b"]
    assert await vectors == Embeddings(((1.0,),), 1)


async def test_a_failure_is_raised_where_vectors_are_awaited_even_after_some_came(engine) -> None:
    engine, worker = engine
    vectors = asyncio.create_task(engine.embed(embedding("a", "b")))
    (asked,) = await worker.hears()
    refusal = Failure.of(EmbeddingsRefused(model="gpt2", reason="it overflows"))
    await worker.says(embedded(asked.request_id, 1.0), StepDone(EngineLoad(), [], [(asked.request_id, refusal)]))
    with pytest.raises(EmbeddingsRefused, match="it overflows"):
        await vectors


async def test_vectors_that_nobody_waits_for_are_cancelled(engine) -> None:
    engine, worker = engine
    vectors = asyncio.create_task(engine.embed(embedding("a", "b")))
    (asked,) = await worker.hears()
    await worker.says(embedded(asked.request_id, 1.0))
    vectors.cancel()
    with pytest.raises(asyncio.CancelledError):
        await vectors
    assert await worker.hears() == [Cancel(asked.request_id)]


async def test_vectors_are_given_up_at_their_deadline_and_cancelled(engine, loop_time) -> None:
    engine, worker = engine
    vectors = asyncio.create_task(engine.embed(embedding("a", within_s=30.0)))
    (asked,) = await worker.hears()
    await loop_time(31.0)
    with pytest.raises(GenerationTimeout):
        await vectors
    assert await worker.hears() == [Cancel(asked.request_id)]


async def test_who_waits_for_vectors_is_told_of_a_crash_and_of_the_end(engine) -> None:
    engine, worker = engine
    vectors = asyncio.create_task(engine.embed(embedding("a")))
    await worker.hears()
    worker.sock.close()
    with pytest.raises(ModelCrashed):
        await vectors
    with pytest.raises(ModelCrashed):
        await engine.embed(embedding("a"))

"""Requests and their fates: every request has one, and none is taken for another."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from benchmarks.faults.asking import Ask, Kind, Tally
from benchmarks.faults.load import Load
from benchmarks.faults.talkers import Chatter, missing_turns

EVENTS = {"content-type": "text/event-stream; charset=utf-8"}
DELTA, DONE = 'data: {"delta": "Hi"}\n\n', "data: [DONE]\n\n"
REFUSED = {"code": "queue_full", "status": 503}


def fate_of(answer, ask=None):
    """The fate of a request that is answered so, and the tally with it."""

    async def run():
        tally = Tally()
        transport = httpx.MockTransport(answer if callable(answer) else lambda _: answer)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await tally.ask(client, ask or Ask("/infer", {})), tally

    return asyncio.run(run())


def test_a_whole_answer_is_answered():
    fate, tally = fate_of(httpx.Response(200, json={"result": "Hi"}))
    assert (fate.kind, fate.content) == (Kind.ANSWERED, {"result": "Hi"})
    assert (tally.sent, tally.answered, tally.lost, tally.wrong) == (1, 1, 0, {})


def test_a_stream_with_its_end_is_answered():
    fate, _ = fate_of(httpx.Response(200, text=f": ping\n\n{DELTA}{DONE}", headers=EVENTS))
    assert (fate.kind, fate.label) == (Kind.ANSWERED, "answered")


def test_a_stream_without_its_end_is_lost():
    fate, tally = fate_of(httpx.Response(200, text=DELTA, headers=EVENTS))
    assert (fate.kind, fate.label) == (Kind.LOST, "lost: a stream without an end")
    assert (tally.lost, tally.wrong, fate.is_right) == (1, {}, False)


@pytest.mark.parametrize("error", [{"code": "model_crashed", "status": 503}, {"code": "model_crashed", "message": "x"}])
def test_an_error_in_a_stream_is_a_refusal(error):
    answer = httpx.Response(200, text=f"{DELTA}data: {json.dumps({'error': error})}\n\n", headers=EVENTS)
    fate, tally = fate_of(answer)
    assert (fate.kind, fate.label, fate.code) == (Kind.REFUSED, "model_crashed in a stream", "model_crashed")
    assert tally.server_errors == {"/infer model_crashed in a stream": 1}
    fate, tally = fate_of(answer, Ask("/infer", {}, expects=frozenset({"model_crashed"})))
    assert (fate.is_right, tally.wrong) == (True, {})


@pytest.mark.parametrize("body", [REFUSED, {"error": {"code": "queue_full", "type": "server_error"}}])
def test_a_refusal_that_was_expected_is_right_in_the_shape_of_either_surface(body):
    answer = httpx.Response(503, json=body, headers={"Retry-After": "1"})
    fate, tally = fate_of(answer, Ask("/infer", {}, expects=frozenset({"queue_full"})))
    assert (fate.label, fate.is_right, fate.says_when) == ("503 queue_full", True, True)
    assert (tally.refused, tally.lost, tally.wrong, tally.untold) == (1, 0, {}, {})
    assert tally.refusals == {"503 queue_full": 1}


def test_a_refusal_that_was_not_expected_is_wrong_and_a_5xx_is_counted_as_one():
    _, tally = fate_of(httpx.Response(500, json={"code": "internal_error"}))
    assert tally.wrong == tally.server_errors == {"/infer 500 internal_error": 1}
    _, tally = fate_of(httpx.Response(404, json={"code": "not_found"}))
    assert (tally.wrong, tally.server_errors) == ({"/infer 404 not_found": 1}, {})


def test_a_500_that_is_no_json_is_never_right():
    fate, tally = fate_of(httpx.Response(500, text="Internal Server Error"))
    assert (fate.is_right, tally.wrong.total()) == (False, 1)


@pytest.mark.parametrize(("told", "says_when"), [("1", True), ("30", True), ("0", False), ("soon", False), ("", False)])
def test_only_a_whole_second_says_when_to_come_again(told, says_when):
    fate, tally = fate_of(httpx.Response(503, json=REFUSED, headers={"Retry-After": told}))
    assert fate.says_when is says_when
    assert tally.untold.total() == (not says_when)


def test_an_answer_where_a_refusal_was_due_is_wrong():
    fate, tally = fate_of(httpx.Response(200, json={}), Ask("/infer", {}, answer_is_right=False))
    assert (fate.kind, fate.is_right, tally.wrong.total()) == (Kind.ANSWERED, False, 1)


def test_a_connection_that_breaks_is_lost():
    def breaks(_):
        raise httpx.ReadError("gone")

    fate, tally = fate_of(breaks)
    assert (fate.kind, fate.label, tally.lost) == (Kind.LOST, "lost: ReadError", 1)


def test_a_client_that_leaves_has_left_and_lost_nothing():
    async def hangs(_):
        await asyncio.Event().wait()

    fate, tally = fate_of(hangs, Ask("/infer", {}, leaves_after_s=0.001))
    assert (fate.kind, tally.left, tally.lost, tally.wrong) == (Kind.LEFT, 1, 0, {})


def test_a_request_that_never_ended_is_lost():
    async def run():
        tally = Tally()
        transport = httpx.MockTransport(lambda _: asyncio.Event().wait())
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            asking = asyncio.create_task(tally.ask(client, Ask("/infer", {})))
            await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        return tally

    tally = asyncio.run(run())
    assert (tally.sent, tally.answered, tally.left, tally.lost) == (1, 0, 0, 1)


async def test_a_load_that_is_left_lets_every_request_end():
    chatters = [Chatter("s1"), Chatter("s2")]
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={}))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http, Load(http, chatters) as load:
        await load.until(lambda tally: tally.answered >= 20)
    assert load.tally.sent == load.tally.answered >= 20
    assert sum(len(chatter.acknowledged) for chatter in chatters) == load.tally.answered
    assert all(len(set(chatter.acknowledged)) == len(chatter.acknowledged) > 0 for chatter in chatters)


@pytest.mark.parametrize(
    ("stored", "found"),
    [
        (["a", "b"], {}),
        (["a"], {"missing": 1}),
        (["a", "b", "b"], {"doubled": 1}),
        (["b", "a"], {"out of order": 1}),
        (["a", "x", "b"], {"stored though refused": 1}),
        (None, {"missing": 2}),
    ],
)
async def test_what_is_wrong_with_a_history_is_named(stored, found):
    chatter = Chatter("s1")
    chatter.acknowledged = ["a", "b"]
    turns = [({"role": "user", "content": text}, {"role": "assistant", "content": "!"}) for text in stored or ()]
    history = [{"role": "system", "content": "s"}, *(message for turn in turns for message in turn)]
    answer = httpx.Response(404) if stored is None else httpx.Response(200, json={"full_history": history})
    transport = httpx.MockTransport(lambda _: answer)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        wrong = await missing_turns(client, [chatter])
    assert {what: count for what, count in wrong.items() if count} == found

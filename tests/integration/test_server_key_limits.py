"""Limits of a key and turns between keys, over real HTTP and with the real engine."""

import asyncio
import http.client
import json
from contextlib import asynccontextmanager, closing

import httpx
import pytest
from live_server import PATIENCE_S, TINY

pytestmark = pytest.mark.model

KEYS = {"flood": "key-of-the-flood-0123456789", "ann": "key-of-ann-0123456789"}
ENTRIES = json.dumps([{"id": name, "key": key} for name, key in KEYS.items()])
QUEUE = 8


def client_of(server, name):
    headers = {"Authorization": f"Bearer {KEYS[name]}"}
    return httpx.AsyncClient(base_url=server.url, headers=headers, timeout=PATIENCE_S, trust_env=False)


@pytest.fixture
async def clients():
    """Opens clients, and closes them after the test."""
    opened = []

    def open_one(server, name):
        opened.append(client_of(server, name))
        return opened[-1]

    yield open_one
    for client in opened:
        await client.aclose()


async def line_of(client):
    return (await client.get("/status")).json()["models"][0]


async def eventually(condition):
    """Until the coroutine that ``condition`` makes is true; fails when it stays false."""
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():  # noqa: ASYNC110 - it is another process that changes
            await asyncio.sleep(0.02)


@asynccontextmanager
async def stream(client, path="/infer", **body):
    asked = {"text": "Once upon a time", "max_new_tokens": 20_000, "ignore_eos": True, "stream": True} | body
    async with client.stream("POST", path, json=asked) as response:
        lines = response.aiter_lines()
        if response.status_code == 200:
            await anext(lines)  # it speaks
        yield response


@pytest.fixture(scope="module")
def limited(start_server):
    env = {"API_KEYS": ENTRIES, "KEY_MAX_CONCURRENCY": 2, "MAX_NEW_TOKENS": 32_000, "MAX_BODY_BYTES": 4096}
    server = start_server(MODEL=TINY, **env).wait_ready()
    yield server
    server.stop()


async def test_streams_count_until_they_end_or_their_client_leaves(limited, clients):
    ann, flood = clients(limited, "ann"), clients(limited, "flood")
    short = {"text": "Hi", "max_new_tokens": 2}
    async with stream(ann) as first, stream(ann) as second:
        refused = await ann.post("/infer", json=short)
        told = [refused.status_code, refused.json()["code"], refused.headers["retry-after"]]
        others = await flood.post("/infer", json=short)
        under_v1 = await ann.post("/v1/completions", json={"model": TINY, "prompt": "Hi", "max_tokens": 2})
        assert (first.status_code, second.status_code, others.status_code) == (200, 200, 200)
    assert told == [429, "concurrency_limit_exceeded", "1"]
    assert (under_v1.status_code, under_v1.json()["error"]["type"]) == (429, "rate_limit_error")

    async def is_let_in():
        return (await ann.post("/infer", json=short)).status_code == 200

    await eventually(is_let_in)


async def test_who_asks_one_after_the_other_is_never_refused_for_two_at_once(fresh_server):
    server = fresh_server(MODEL=TINY, API_KEYS=ENTRIES, KEY_MAX_CONCURRENCY=1).wait_ready()
    body = json.dumps({"text": "Hi", "max_new_tokens": 2, "stream": True})
    headers = {"Authorization": f"Bearer {KEYS['ann']}", "Content-Type": "application/json"}
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=PATIENCE_S)
    with closing(connection):
        statuses = []
        for _ in range(60):  # as fast as can be: the next one is sent with the last byte of the answer before
            connection.request("POST", "/infer", body, headers)
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
    assert statuses == [200] * 60


async def test_whatever_ends_requests_none_stays_counted(limited, clients):
    ann = clients(limited, "ann")
    endless = {"text": "Hi", "max_new_tokens": 20_000, "ignore_eos": True}
    for _ in range(3):
        assert (await ann.post("/infer", json={"text": 5})).status_code == 422
        assert (await ann.post("/infer", json={"text": "x" * 5000})).status_code == 413
        assert (await ann.post("/infer", json={"text": "Hi", "model": "nobody/nothing"})).status_code >= 400
        with pytest.raises(httpx.ReadTimeout):
            await ann.post("/infer", json=endless, timeout=httpx.Timeout(PATIENCE_S, read=0.2))

    async def both_places_are_free():
        answers = [ann.post("/infer", json={"text": "Hi", "max_new_tokens": 2}) for _ in range(2)]
        return [answer.status_code for answer in await asyncio.gather(*answers)] == [200, 200]

    await eventually(both_places_are_free)


async def test_no_minute_has_more_requests_of_a_key_than_it_may_send(fresh_server, clients):
    server = fresh_server(MODEL=TINY, API_KEYS=ENTRIES, KEY_REQUESTS_PER_MINUTE=3).wait_ready()
    ann, flood = clients(server, "ann"), clients(server, "flood")
    body = {"text": "Hi", "max_new_tokens": 2}
    answers = await asyncio.gather(*(ann.post("/infer", json=body) for _ in range(8)))
    refused = [answer for answer in answers if answer.status_code == 429]
    assert sorted(answer.status_code for answer in answers) == [200] * 3 + [429] * 5
    assert {answer.json()["code"] for answer in refused} == {"rate_limit_exceeded"}
    assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in refused)
    assert (await flood.post("/infer", json=body)).status_code == 200


async def test_a_flood_of_one_key_holds_another_up_for_a_request_or_two_and_does_not_shut_it_out(fresh_server, clients):
    server = fresh_server(MODEL=TINY, API_KEYS=ENTRIES, MAX_BATCH=1, MAX_QUEUE=QUEUE).wait_ready()
    ann, flood = clients(server, "ann"), clients(server, "flood")
    long = {"text": "Once upon a time", "max_new_tokens": 400, "ignore_eos": True}
    sent = [asyncio.create_task(flood.post("/infer", json=long)) for _ in range(1 + QUEUE)]

    async def is_full():
        return (await line_of(ann))["queued"] == QUEUE

    await eventually(is_full)
    refused = await flood.post("/infer", json=long)
    answer = await ann.post("/infer", json={"text": "Hi", "max_new_tokens": 2})
    ahead = [task.result().status_code for task in sent if task.done()]
    assert (refused.status_code, refused.json()["code"]) == (503, "queue_full")
    assert answer.status_code == 200
    assert ahead.count(200) <= 3  # the one that ran, the one whose turn it was, and one that ended since
    statuses = [response.status_code for response in await asyncio.gather(*sent)]
    assert sorted(statuses) == [200] * QUEUE + [503]  # the last of the flood gave way, and nobody was lost


async def test_texts_of_one_key_come_in_turns_with_those_of_another(fresh_server, clients):
    server = fresh_server(MODEL=TINY, API_KEYS=ENTRIES).wait_ready()
    ann, flood = clients(server, "ann"), clients(server, "flood")
    many = {"model": TINY, "input": ["A text that takes its time. " * 40] * 100}
    sent = [asyncio.create_task(flood.post("/v1/embeddings", json=many)) for _ in range(8)]

    async def has_begun():
        return (await line_of(ann))["in_flight"] == len(sent)

    await eventually(has_begun)
    answer = await ann.post("/v1/embeddings", json={"model": TINY, "input": "Hi"})
    assert (answer.status_code, all(task.done() for task in sent)) == (200, False)
    assert [response.status_code for response in await asyncio.gather(*sent)] == [200] * len(sent)


async def test_a_flood_of_hundreds_shuts_no_other_key_out(fresh_server, clients):
    server = fresh_server(MODEL=TINY, API_KEYS=ENTRIES, MAX_BATCH=2, MAX_QUEUE=4).wait_ready()
    ann, flood = clients(server, "ann"), clients(server, "flood")
    stop = asyncio.Event()
    refused = 0

    async def ask_again():
        nonlocal refused
        while not stop.is_set():
            answer = await flood.post("/infer", json={"text": "Once upon a time", "max_new_tokens": 8})
            refused += answer.status_code == 503

    flooding = [asyncio.create_task(ask_again()) for _ in range(60)]
    short = {"text": "Hi", "max_new_tokens": 2}
    statuses = [(await ann.post("/infer", json=short)).status_code for _ in range(25)]
    stop.set()
    await asyncio.gather(*flooding)
    assert statuses == [200] * 25
    assert refused > 0

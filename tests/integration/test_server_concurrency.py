"""Many clients at once: the same answers as alone, none lost, and a server that stays alive meanwhile."""

import asyncio
import json
from contextlib import asynccontextmanager

import httpx
import pytest
from live_server import DEMO, PATIENCE_S, TINY, until

pytestmark = pytest.mark.model

BEGINNINGS = [
    "Once upon a time",
    "The sea",
    "In the year 1969",
    "My favourite colour",
    "To bake bread",
    "A cat",
    "Rain",
]


@pytest.fixture
async def clients(server):
    async with httpx.AsyncClient(
        base_url=server.url, timeout=PATIENCE_S, trust_env=False, limits=httpx.Limits(max_connections=100)
    ) as client:
        yield client


@asynccontextmanager
async def pulse(client):
    """The statuses of ``/health/live``, asked again and again for as long as the context lasts."""
    statuses, over = [], asyncio.Event()

    async def ask():
        while not over.is_set():
            statuses.append((await client.get("/health/live")).status_code)
            await asyncio.sleep(0.05)  # or asking would be all that the machine does

    asking = asyncio.create_task(ask())
    try:
        yield statuses
    finally:
        over.set()
        await asking


async def test_thirty_two_at_once_say_what_each_says_alone_and_the_server_stays_alive(server, clients, and_back):
    def ask(number):
        text = f"{BEGINNINGS[number % len(BEGINNINGS)]}, number {number},"
        body = {"text": text, "max_new_tokens": 64, "ignore_eos": True, "temperature": 0, "details": True}
        return clients.post("/infer", json=body)

    async with pulse(clients) as statuses:
        await clients.post("/load_model", json={"model_name": DEMO, "dtype": "float32"})
        together = [response.json() for response in await asyncio.gather(*(ask(number) for number in range(32)))]
        alone = {number: (await ask(number)).json() for number in (0, 13, 31)}
    assert server.model_line()["dtype"] == "float32"
    assert [answer["details"]["usage"]["completion_tokens"] for answer in together] == [64] * 32
    assert {answer["details"]["finish_reason"] for answer in together} == {"length"}
    assert {number: together[number]["result"] for number in alone} == {n: a["result"] for n, a in alone.items()}
    assert len(statuses) > 10
    assert set(statuses) == {200}


async def test_turns_of_one_session_sent_at_once_are_kept_one_after_another(clients):
    body = {"session_id": "at-once", "max_new_tokens": 4, "ignore_eos": True}
    replies = await asyncio.gather(*(clients.post("/chat", json=body | {"text": f"Turn {n}"}) for n in range(4)))
    assert [reply.status_code for reply in replies] == [200] * 4
    longest = max((reply.json()["full_history"] for reply in replies), key=len)
    assert len(longest) == 9
    assert {message["content"] for message in longest[1::2]} == {f"Turn {n}" for n in range(4)}
    assert all(reply.json()["full_history"] == longest[: len(reply.json()["full_history"])] for reply in replies)


async def test_a_full_queue_refuses_the_rest_and_loses_none(narrow_server):
    server = narrow_server
    assert server.model_line()["dtype"] == "float32"
    limits = httpx.Limits(max_connections=20)
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S, trust_env=False, limits=limits) as client:
        with server.stream(max_new_tokens=4000, ignore_eos=True) as running:
            next(running)
            body = {"text": "Hi", "max_new_tokens": 2, "ignore_eos": True}
            sent = [asyncio.create_task(client.post("/infer", json=body)) for _ in range(12)]
            await asyncio.to_thread(until, lambda: sum(request.done() for request in sent) == 8)
            assert server.model_line()["queued"] == 4
            response = await client.post("/infer", json=body | {"stream": True})
            assert (response.status_code, response.json()["code"]) == (503, "queue_full")
        answers = await asyncio.gather(*sent)
    refused = [answer for answer in answers if answer.status_code == 503]
    assert [answer.status_code for answer in answers if answer not in refused] == [200] * 4
    assert len(refused) == 8
    for answer in refused:
        assert answer.json()["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) >= 1
    await asyncio.to_thread(server.wait_idle)


async def test_requests_during_a_change_wait_for_the_new_model_and_other_changes_are_told_to(server, clients, and_back):
    async with pulse(clients) as statuses:
        long = asyncio.create_task(_streamed(clients, {"text": "The sea", "max_new_tokens": 20, "ignore_eos": True}))
        await asyncio.to_thread(server.wait_busy)
        change = asyncio.create_task(clients.post("/change_model", json={"new_model_name": TINY}))
        await asyncio.to_thread(until, lambda: server.status()["state"] != "ready")
        other = await clients.post("/load_model", json={"model_name": DEMO, "dtype": "float32"})
        body = {"text": "Hi", "max_new_tokens": 2, "ignore_eos": True, "details": True}
        waiting = [asyncio.create_task(clients.post("/infer", json=body)) for _ in range(3)]
        same = asyncio.create_task(clients.post("/change_model", json={"new_model_name": TINY}))
        changes = [await change, await same]
        answers = [(await request).json() for request in waiting]
        drained = await long
    assert (other.status_code, other.json()["code"]) == (409, "operation_in_progress")
    assert [answer.status_code for answer in changes] == [200, 200]
    assert changes[0].json() == changes[1].json()
    assert [answer["details"]["model"] for answer in answers] == [TINY] * 3
    assert drained[-1] == "data: [DONE]"
    assert json.loads(drained[-2].removeprefix("data: "))["input"] == "The sea"
    assert set(statuses) == {200}


async def _streamed(client, body):
    response = await client.post("/infer", json=body | {"stream": True})
    return [line for line in response.text.splitlines() if line]

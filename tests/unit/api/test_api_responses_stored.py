"""Stored responses: told again, gone on from, forgotten; and what they answer."""

from __future__ import annotations

import hashlib

import pytest

from fakes import settle
from inferapi.api.auth import ApiKey
from inferapi.domain.chat import Message

ASK = {"model": "gpt2", "input": "Hi"}
UNKNOWN = "resp_" + "0" * 48
KEYS = tuple(
    ApiKey(name, hashlib.sha256(f"{name}-0123456789abcdef".encode()).digest(), frozenset({"infer"}))
    for name in ("alice", "bob")
)


@pytest.fixture(autouse=True)
async def loaded(stage):
    await stage.load()


@pytest.fixture
async def keyed_client(stage, client_of):
    async with client_of(stage.app(keys=KEYS)) as client:
        yield client


def as_(name: str) -> dict[str, str]:
    """The header of that key."""
    return {"Authorization": f"Bearer {name}-0123456789abcdef"}


async def create(client, headers: dict[str, str] | None = None, **changes) -> dict:
    """A response."""
    answer = await client.post("/v1/responses", json=ASK | changes, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_response_is_told_again_as_it_was_told(client):
    text = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}
    told = await create(
        client,
        instructions="Be kind.",
        metadata={"a": "b"},
        text=text,
        include=["message.output_text.logprobs"],
        top_logprobs=1,
    )
    answer = await client.get(f"/v1/responses/{told['id']}")
    assert (answer.status_code, answer.json()) == (200, told)


async def test_a_response_that_was_cut_is_told_again_as_incomplete(client):
    told = await create(client, max_output_tokens=1)
    assert (await client.get(f"/v1/responses/{told['id']}")).json() == told
    assert told["status"] == "incomplete"


async def test_a_response_that_was_not_to_be_stored_is_unknown(client):
    told = await create(client, store=False)
    assert told["store"] is False
    assert (await client.get(f"/v1/responses/{told['id']}")).status_code == 404


async def test_who_names_a_response_goes_on_from_it(client, stage):
    first = await create(client, instructions="Be kind.")
    second = await create(client, input="And?", previous_response_id=first["id"])
    assert second["previous_response_id"] == first["id"]
    assert stage.engine.requests[-1].prompt.messages == (
        Message("user", "Hi"),
        Message("assistant", "Hello there"),
        Message("user", "And?"),
    )


async def test_a_deleted_response_is_unknown(client):
    told = await create(client)
    answer = await client.delete(f"/v1/responses/{told['id']}")
    assert (answer.status_code, answer.json()) == (200, {"id": told["id"], "object": "response", "deleted": True})
    assert (await client.get(f"/v1/responses/{told['id']}")).status_code == 404
    assert (await client.delete(f"/v1/responses/{told['id']}")).status_code == 404


async def test_unknown_expired_and_anothers_are_the_same_to_the_byte(keyed_client, stage):
    expired = await create(keyed_client, as_("alice"))
    await stage.clock.advance(3601)
    of_another = await create(keyed_client, as_("bob"))
    bodies = set()
    for response_id in (UNKNOWN, expired["id"], of_another["id"], "nonsense", "resp_"):
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/input_items")):
            url = f"/v1/responses/{response_id}{path}"
            answer = await keyed_client.request(method, url, headers=as_("alice"))
            assert answer.status_code == 404
            bodies.add(answer.content)
    assert len(bodies) == 1
    going_on = set()
    for response_id in (UNKNOWN, expired["id"], of_another["id"], "nonsense", ""):
        body = {**ASK, "previous_response_id": response_id}
        answer = await keyed_client.post("/v1/responses", json=body, headers=as_("alice"))
        assert (answer.status_code, answer.json()["error"]["param"]) == (404, "previous_response_id")
        going_on.add(answer.content)
    assert len(going_on) == 1
    assert (await keyed_client.get(f"/v1/responses/{of_another['id']}", headers=as_("bob"))).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", ""), ("GET", f"/{UNKNOWN}"), ("DELETE", f"/{UNKNOWN}"), ("GET", f"/{UNKNOWN}/input_items")],
)
async def test_a_key_is_needed(keyed_client, method, path):
    answer = await keyed_client.request(method, f"/v1/responses{path}")
    assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")


async def test_responses_are_not_listed_as_sessions(client):
    told = await create(client)
    assert (await client.get("/sessions")).json()["sessions"] == []
    assert (await client.get(f"/sessions/{told['id']}")).status_code == 404


async def test_a_session_that_calls_itself_a_response_is_none(client):
    response_id = "resp_" + "1" * 48
    assert (await client.post("/chat", json={"text": "Hi", "session_id": response_id})).status_code == 200
    assert (await client.get(f"/v1/responses/{response_id}")).status_code == 404


async def test_a_response_that_is_being_made_can_be_deleted(client, stage, call):
    stage.engine.gate.hold()
    making = call(stage.app(), "/v1/responses", {**ASK, "stream": True})
    await settle()
    response_id = next(iter(making.body.decode().split('"id":"')[1:])).split('"')[0]
    assert (await client.get(f"/v1/responses/{response_id}")).status_code == 404
    assert (await client.delete(f"/v1/responses/{response_id}")).status_code == 200
    stage.engine.gate.open()
    await making.task
    assert b"event: response.failed\n" in making.body
    assert b"history_not_saved" in making.body
    assert (await client.get(f"/v1/responses/{response_id}")).status_code == 404


# --- what a response answers


async def listed(client, response_id: str, **query) -> dict:
    """A page of a response's input items."""
    answer = await client.get(f"/v1/responses/{response_id}/input_items", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_the_input_of_a_response_is_told_whole_and_in_either_order(client):
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Rain?"}]},
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}]},
    ]
    told = await create(client, input=items)
    page = await listed(client, told["id"], order="asc")
    ids = [item.pop("id") for item in page["data"]]
    assert page["data"] == [
        {
            "type": "message",
            "status": "completed",
            "role": "developer",
            "content": [{"type": "input_text", "text": "Be brief."}],
        },
        {
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_text", "text": "Rain?"}],
        },
        {
            "type": "function_call",
            "status": "completed",
            "call_id": "call_1",
            "name": "weather",
            "arguments": "{}",
        },
        {"type": "function_call_output", "status": "completed", "call_id": "call_1", "output": "rain"},
        {
            "type": "reasoning",
            "status": "completed",
            "summary": [{"type": "summary_text", "text": "short"}],
            "content": [],
        },
    ]
    assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == ("list", ids[0], ids[-1], False)
    assert [item["id"] for item in (await listed(client, told["id"]))["data"]] == ids[::-1]


async def test_the_input_of_a_later_response_begins_with_the_earlier_ones(client):
    first = await create(client)
    second = await create(client, input="And?", previous_response_id=first["id"])
    page = await listed(client, second["id"], order="asc")
    assert [item["content"][0]["text"] for item in page["data"]] == ["Hi", "Hello there", "And?"]
    assert page["data"][1]["id"] == first["output"][0]["id"]


async def test_pages_of_items_meet(client):
    told = await create(client, input=[{"role": "user", "content": f"{number}"} for number in range(25)])
    for order, wanted in (("asc", range(25)), ("desc", range(24, -1, -1))):
        texts, query = [], {"limit": 10, "order": order}
        while True:
            page = await listed(client, told["id"], **query)
            texts += [item["content"][0]["text"] for item in page["data"]]
            query["after"] = page["last_id"]
            if not page["has_more"]:
                break
        assert texts == [f"{number}" for number in wanted]
        beyond = await listed(client, told["id"], **query)
        assert (beyond["data"], beyond["first_id"], beyond["has_more"]) == ([], None, False)
    assert len((await listed(client, told["id"]))["data"]) == 20


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("?stream=true", "stream"),
        ("?starting_after=3", "starting_after"),
        ("?include[]=file_search_call.results", "query"),
        ("/input_items?limit=0", "limit"),
        ("/input_items?limit=101", "limit"),
        ("/input_items?order=up", "order"),
        ("/input_items?after=msg_0", "after"),
        ("/input_items?before=msg_0", "before"),
    ],
)
async def test_what_cannot_be_asked_of_a_stored_response_is_refused_by_its_name(client, path, param):
    told = await create(client)
    answer = await client.get(f"/v1/responses/{told['id']}{path}")
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].removeprefix("query.") == param


@pytest.mark.parametrize(
    "path", ["?stream=false", "?include[]=message.output_text.logprobs", "?include_obfuscation=false"]
)
async def test_what_changes_nothing_may_be_asked(client, path):
    told = await create(client)
    assert (await client.get(f"/v1/responses/{told['id']}{path}")).json() == told

"""``POST /v1/responses`` as events."""

from __future__ import annotations

import asyncio
import json

import pytest

from fakes import settle
from inferapi.domain.errors import OutOfMemory, SessionStoreUnavailable
from responses_side import typed_events

ASK = {"model": "gpt2", "input": "Hi", "stream": True}
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}}


@pytest.fixture(autouse=True)
async def loaded(stage):
    await stage.load()


async def streamed(client, **changes) -> list[dict]:
    """The events of an answer."""
    answer = await client.post("/v1/responses", json=ASK | changes)
    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, "text/event-stream"), answer.text
    events = typed_events(answer.text)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def kinds(events: list[dict]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def without_ids(value):
    """What is told, but for ids that differ from answer to answer."""
    if isinstance(value, dict):
        return {name: without_ids(entry) for name, entry in value.items() if name not in {"id", "item_id", "call_id"}}
    return [without_ids(entry) for entry in value] if isinstance(value, list) else value


async def test_a_message_comes_in_openais_events(client):
    events = await streamed(client)
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    created, in_progress, added, part_added, first, second, text_done, part_done, item_done, completed = events
    assert created["response"] == in_progress["response"]
    assert (created["response"]["status"], created["response"]["output"], created["response"]["usage"]) == (
        "in_progress",
        [],
        None,
    )
    assert (created["response"]["model"], created["response"]["metadata"]) == ("gpt2", {})
    message = item_done["item"]
    assert added["item"] == message | {"status": "in_progress", "content": []}
    place = {"item_id": message["id"], "output_index": 0, "content_index": 0}
    for event in (part_added, first, second, text_done, part_done):
        assert {name: event[name] for name in place} == place
    assert part_added["part"] == {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    assert [(event["delta"], event["logprobs"]) for event in (first, second)] == [("Hello", []), (" there", [])]
    assert (text_done["text"], text_done["logprobs"]) == ("Hello there", [])
    assert message["content"] == [part_done["part"]] == [part_added["part"] | {"text": "Hello there"}]
    assert completed["response"]["output"] == [message]
    assert completed["response"]["id"] == created["response"]["id"]


async def test_the_last_event_holds_the_response_as_it_is_told_whole(client):
    last = (await streamed(client))[-1]["response"]
    whole = (await client.post("/v1/responses", json=ASK | {"stream": False})).json()
    assert without_ids(last) == without_ids(whole)
    assert (await client.get(f"/v1/responses/{last['id']}")).json() == last


async def test_there_is_no_done(client):
    assert "[DONE]" not in (await client.post("/v1/responses", json=ASK)).text


async def test_an_answer_cut_by_its_limit_ends_incomplete(client):
    events = await streamed(client, max_output_tokens=1)
    assert kinds(events)[-2:] == ["output_item.done", "incomplete"]
    assert events[-2]["item"]["status"] == "incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}


async def test_log_probabilities_come_with_their_text(client):
    events = await streamed(client, include=["message.output_text.logprobs"], top_logprobs=1)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [[token["token"] for token in event["logprobs"]] for event in deltas] == [["Hello"], [" there"]]
    done = next(event for event in events if event["type"] == "response.output_text.done")
    assert done["logprobs"] == [token for event in deltas for token in event["logprobs"]]


async def test_calls_come_as_arguments_that_grow(make_stage, client_of):
    call_text = ['<tool_call>\n{"name": "weather", "arguments": {"city"', ': "Oslo"}}\n</tool_call>']
    stage = await make_stage("Wait.", *call_text)
    stage.launcher.facts = {"tool_format": "hermes"}
    await stage.load()
    async with client_of(stage.app()) as client:
        events = await streamed(client, tools=[TOOL])
    start = kinds(events).index("output_item.added", 3)
    added, *deltas, done, item_done, completed = events[start:]
    assert set(kinds(deltas)) == {"function_call_arguments.delta"}
    assert (done["type"], item_done["type"]) == (
        "response.function_call_arguments.done",
        "response.output_item.done",
    )
    assert "".join(event["delta"] for event in deltas) == done["arguments"] == '{"city": "Oslo"}'
    call = item_done["item"]
    assert added["item"] == call | {"status": "in_progress", "arguments": ""}
    assert (call["name"], done["name"], done["item_id"], done["output_index"]) == ("weather", "weather", call["id"], 1)
    assert completed["response"]["output"][1] == call


async def test_reasoning_comes_apart_from_the_text(make_stage, client_of):
    stage = await make_stage("<think>", "Hm", ".", "</think>", "Rain.")
    stage.launcher.facts = {"reasoning_tags": ("<think>", "</think>")}
    await stage.load()
    async with client_of(stage.app()) as client:
        events = await streamed(client)
    assert "".join(event["delta"] for event in events if event["type"] == "response.reasoning_text.delta") == "Hm."
    assert "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta") == "Rain."
    done = kinds(events).index("reasoning_text.done")
    assert kinds(events)[done : done + 4] == [
        "reasoning_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
    ]
    assert events[done]["text"] == "Hm."
    assert events[done + 1]["part"] == {"type": "reasoning_text", "text": "Hm."}


async def test_an_early_error_keeps_its_status(client, stage):
    answer = await client.post("/v1/responses", json={**ASK, "input": "a " * 1024, "max_output_tokens": 10})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    answer = await client.post("/v1/responses", json={**ASK, "previous_response_id": "resp_1"})
    assert answer.status_code == 404


async def test_an_answer_that_fails_on_the_way_says_so_and_what_it_had(client, stage):
    stage.engine.fail_with = OutOfMemory()
    events = await streamed(client)
    assert kinds(events)[-1] == "failed"
    response = events[-1]["response"]
    assert (response["status"], response["error"]["code"]) == ("failed", "insufficient_memory")
    assert response["error"]["message"] == str(OutOfMemory())
    assert (response["id"], response["output"]) == (events[0]["response"]["id"], [])


async def test_a_response_that_could_not_be_stored_ends_failed_after_its_text(client, stage):
    stage.store.errors["commit"] = SessionStoreUnavailable()
    events = await streamed(client)
    assert kinds(events)[-2:] == ["output_item.done", "failed"]
    response = events[-1]["response"]
    assert response["error"]["code"] == "history_not_saved"
    assert response["output"] == [events[-2]["item"]]


async def test_the_first_events_come_before_the_second_token(stage, call):
    stage.engine.gate.hold()
    request = call(stage.app(), "/v1/responses", ASK)
    await settle()
    assert kinds(typed_events(request.body.decode()))[-1] == "output_text.delta"
    stage.engine.gate.open()
    await request.task
    assert kinds(typed_events(request.body.decode()))[-1] == "completed"


async def test_who_leaves_ends_the_work_and_nothing_is_stored(stage, call):
    stage.engine.gate.hold()
    request = call(stage.app(), "/v1/responses", ASK)
    await settle()
    await request.leave()
    await asyncio.gather(request.task, return_exceptions=True)
    assert (stage.engine.in_flight, stage.engine.cancelled) == (0, 1)
    assert (await stage.store.page("responses/", 10, None)).sessions == ()


async def test_who_leaves_before_a_whole_answer_ends_the_work(stage, call):
    stage.engine.gate.hold()
    request = call(stage.app(), "/v1/responses", ASK | {"stream": False})
    await settle()
    await request.leave()
    await asyncio.gather(request.task, return_exceptions=True)
    assert (stage.engine.in_flight, stage.engine.cancelled) == (0, 1)


async def test_a_stream_whose_model_does_not_come_has_pings_and_then_an_error(make_stage, call, loop_time):
    stage = await make_stage()
    await stage.load()
    stage.engine.crash()
    await settle()
    stage.launcher.gate.hold()
    stage.launcher.errors["gpt2"] = [OutOfMemory(), OutOfMemory(), OutOfMemory()]
    request = call(stage.app(), "/v1/responses", ASK)
    await loop_time(10.5)
    assert (request.status, request.body) == (200, b": ping\n\n")
    stage.launcher.gate.open()
    await request.task
    frame = request.body.decode().removeprefix(": ping\n\n")
    name, data = frame.removesuffix("\n\n").split("\n")
    told = json.loads(data.removeprefix("data: "))
    assert (name, told["type"], told["sequence_number"]) == ("event: error", "error", 0)
    assert told["error"]["code"] == told["code"]
    assert told["message"] == told["error"]["message"] != ""

"""Responses, their events and their items are what OpenAI's own library takes them for."""

from __future__ import annotations

import pytest
from openai.types import responses as types
from pydantic import TypeAdapter

from responses_side import typed_events

WEATHER = {"type": "function", "name": "weather", "parameters": {"type": "object"}}
FORMAT = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}
CALL = ("Wait.", '<tool_call>\n{"name": "weather", "arguments"', ': {"city": "Oslo"}}\n</tool_call>')


@pytest.fixture
async def make_client(make_stage, client_of):
    """Makes a client of a model that reasons, speaks and calls."""

    async def make(*words: str):
        stage = await make_stage(*words)
        stage.launcher.facts = {"tool_format": "hermes", "reasoning_tags": ("<think>", "</think>")}
        await stage.load()
        return client_of(stage.app())

    return make


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"tools": [WEATHER]}, ["reasoning", "message", "function_call"]),
        ({"instructions": "Be kind.", "metadata": {"a": "b"}}, ["reasoning", "message"]),
        ({"max_output_tokens": 2, "tools": [WEATHER], "tool_choice": "auto"}, ["reasoning"]),
        ({"include": ["message.output_text.logprobs"], "top_logprobs": 2}, ["reasoning", "message"]),
        ({"text": FORMAT, "user": "me", "store": False}, ["reasoning", "message"]),
    ],
)
async def test_a_response_and_its_events_are_openais(make_client, changes, kinds):
    async with await make_client("<think>", "Hm.", "</think>", *CALL) as client:
        body = {"model": "gpt2", "input": "Hi", **changes}
        answer = await client.post("/v1/responses", json=body)
        assert answer.status_code == 200, answer.text
        response = types.Response.model_validate(answer.json())
        events = typed_events((await client.post("/v1/responses", json={**body, "stream": True})).text)
    assert [item.type for item in response.output] == kinds
    checked = [TypeAdapter(types.ResponseStreamEvent).validate_python(event) for event in events]
    assert [event.type for event in checked] == [event["type"] for event in events]
    assert [item.type for item in checked[-1].response.output] == kinds


async def test_the_items_of_an_input_are_openais(make_client):
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Rain?"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "short"}]},
        {"role": "assistant", "content": "Let me see."},
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
    ]
    async with await make_client("Rain.") as client:
        told = (await client.post("/v1/responses", json={"model": "gpt2", "input": items})).json()
        page = (await client.get(f"/v1/responses/{told['id']}/input_items", params={"order": "asc"})).json()
    checked = types.ResponseItemList.model_validate(page)
    assert [type(item).__name__ for item in checked.data] == [
        "ResponseInputMessageItem",
        "ResponseInputMessageItem",
        "ResponseReasoningItem",
        "ResponseOutputMessage",
        "ResponseFunctionToolCallItem",
        "ResponseFunctionToolCallOutputItem",
    ]

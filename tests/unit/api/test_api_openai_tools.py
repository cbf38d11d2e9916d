"""Tools and reasoning under ``/v1/chat/completions``: whole and in pieces, and what the model is told of them."""

from __future__ import annotations

import json

import pytest

from inferapi.domain.generation import ConstraintKind, Tool

PATH = "/v1/chat/completions"
ASK = {"model": "gpt2", "messages": [{"role": "user", "content": "How is Rome?"}]}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": PARAMETERS}}
TIME = {"type": "function", "function": {"name": "time"}}
CALL = ('<tool_call>\n{"name": "weather", "arg', 'uments": {"city": "Ro', 'me"}}\n</tool_call>')


@pytest.fixture
async def make(make_stage, client_of):
    """Makes a stage whose model knows tools and thinks, and says these words."""

    async def make(*words: str):
        stage = await make_stage(*words)
        stage.launcher.facts = {"tool_format": "hermes", "reasoning_tags": ("<think>", "</think>")}
        await stage.load()
        return stage, client_of(stage.app())

    return make


def chunks_of(text: str) -> list[dict]:
    """The only choice of every chunk."""
    blocks = [block.removeprefix("data: ") for block in text.split("\n\n")[:-2]]
    return [json.loads(block)["choices"][0] for block in blocks]


async def test_a_call_is_part_of_the_message(make):
    stage, client_of_it = await make(*CALL)
    async with client_of_it as client:
        (choice,) = (await client.post(PATH, json=ASK | {"tools": [WEATHER, TIME]})).json()["choices"]
    message = choice["message"]
    (call,) = message.pop("tool_calls")
    assert message == {"role": "assistant", "content": None, "refusal": None}
    assert call.pop("id")
    assert (call["type"], call["function"]["name"]) == ("function", "weather")
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}
    assert choice["finish_reason"] == "tool_calls"
    tools = stage.engine.requests[0].prompt.tools
    assert [tool.name for tool in tools] == ["weather", "time"]
    assert tools[0] == Tool("weather", "Of a city.", json.dumps(PARAMETERS, separators=(",", ":")))
    assert json.loads(tools[1].parameters) == {"type": "object", "properties": {}}


async def test_a_call_comes_in_pieces_the_first_of_which_names_it(make):
    _, client_of_it = await make(*CALL)
    async with client_of_it as client:
        chunks = chunks_of((await client.post(PATH, json=ASK | {"tools": [WEATHER], "stream": True})).text)
    assert chunks[0]["delta"] == {"role": "assistant", "content": None}
    assert chunks[-1]["delta"] == {}
    assert chunks[-1]["finish_reason"] == "tool_calls"
    pieces = [chunk["delta"]["tool_calls"][0] for chunk in chunks[1:-1]]
    first, *others = pieces
    assert first["id"]
    assert (first["index"], first["type"], first["function"]["name"]) == (0, "function", "weather")
    assert others
    assert {tuple(piece) for piece in others} == {("index", "function")}
    assert {tuple(piece["function"]) for piece in others} == {("arguments",)}
    assert json.loads("".join(piece["function"]["arguments"] for piece in pieces)) == {"city": "Rome"}


async def test_the_answer_of_a_tool_goes_back_to_the_model_with_the_call(make):
    stage, client_of_it = await make("It is hot.")
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        *ASK["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "31"},
    ]
    async with client_of_it as client:
        answer = await client.post(PATH, json=ASK | {"messages": messages, "tools": [WEATHER]})
    assert answer.json()["choices"][0]["message"]["content"] == "It is hot."
    asked, called, told = stage.engine.requests[0].prompt.messages
    assert (asked.content, called.tool_calls[0].call_id, told.tool_call_id) == ("How is Rome?", "call_1", "call_1")


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "weather"}}])
async def test_a_strict_tool_is_a_constraint_whether_it_must_be_called_or_may_be(make, choice):
    stage, client_of_it = await make(*CALL)
    strict = {"type": "function", "function": WEATHER["function"] | {"strict": True}}
    async with client_of_it as client:
        answer = await client.post(PATH, json=ASK | {"tools": [strict, TIME], "tool_choice": choice})
    assert answer.status_code == 200
    assert stage.engine.requests[0].sampling.constraint.kind is ConstraintKind.GRAMMAR


async def test_with_none_the_model_is_told_of_no_tools(make):
    stage, client_of_it = await make("Hot.")
    async with client_of_it as client:
        answer = await client.post(PATH, json=ASK | {"tools": [WEATHER], "tool_choice": "none"})
    assert answer.status_code == 200
    assert stage.engine.requests[0].prompt.tools == ()


async def test_a_model_that_knows_no_tools_says_so(client):
    answer = await client.post(PATH, json=ASK | {"tools": [WEATHER]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")


async def test_a_format_beside_tools_that_may_be_called_is_a_constraint_for_both(make):
    stage, client_of_it = await make("{}")
    asked = ASK | {"tools": [WEATHER], "response_format": {"type": "json_object"}}
    async with client_of_it as client:
        answer = await client.post(PATH, json=asked)
    assert answer.json()["choices"][0]["message"]["content"] == "{}"
    assert stage.engine.requests[0].sampling.constraint.kind is ConstraintKind.GRAMMAR


async def test_reasoning_comes_apart_from_the_content(make):
    _, client_of_it = await make("<think>", "Rome is", " south.</think>", "It is hot.")
    async with client_of_it as client:
        answer = (await client.post(PATH, json=ASK)).json()
        chunks = chunks_of((await client.post(PATH, json=ASK | {"stream": True})).text)
    (choice,) = answer["choices"]
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 3}
    assert choice["message"]["reasoning_content"].strip() == "Rome is south."
    assert choice["message"]["content"].strip() == "It is hot."
    deltas = [chunk["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == choice["message"]["reasoning_content"]
    assert "".join(delta.get("content") or "" for delta in deltas) == choice["message"]["content"]
    assert not [delta for delta in deltas if {"content", "reasoning_content"} <= set(delta)]

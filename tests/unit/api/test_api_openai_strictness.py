"""Parameters that are not built: refused by name, or, where the server is lenient, ignored with a warning."""

from __future__ import annotations

import json

import pytest

from inferapi.api.openai.strictness import CHAT, COMPLETION, EMBEDDING, MESSAGE, Tolerated

CHAT_PATH, TEXT_PATH, EMBED_PATH = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
HI = {"model": "gpt2", "messages": [{"role": "user", "content": "Hi"}]}
MEANS_NOTHING = {
    "user": "me",
    "safety_identifier": "me",
    "metadata": {"a": "b"},
    "store": False,
    "service_tier": "auto",
    "prompt_cache_key": "k",
    "prompt_cache_retention": "in_memory",
    "modalities": ["text"],
    "verbosity": "medium",
}
REFUSED = [
    ("no_such_parameter", None),
    ("store", True),
    ("store", 0),
    ("metadata", "x"),
    ("user", 5),
    ("service_tier", "flex"),
    ("modalities", ["text", "audio"]),
    ("audio", {"voice": "x", "format": "wav"}),
    ("prediction", {"type": "content", "content": "x"}),
    ("reasoning_effort", "low"),
    ("verbosity", "high"),
    ("web_search_options", {}),
    ("functions", []),
    ("function_call", "auto"),
    ("best_of", 1),
    ("echo", False),
]


@pytest.fixture(autouse=True)
async def loaded(stage):
    stage.launcher.facts = {"embeds": True}
    await stage.load()


@pytest.fixture
async def lenient(stage, client_of):
    async with client_of(stage.app(lenient_params=True)) as client:
        yield client


def named(answer):
    error = answer.json()["error"]
    return answer.status_code, error["type"], error["code"], error["param"]


async def test_what_means_nothing_here_is_taken(client):
    answer = await client.post(CHAT_PATH, json=HI | MEANS_NOTHING)
    assert answer.status_code == 200
    assert "warnings" not in answer.json()


@pytest.mark.parametrize(("name", "value"), REFUSED)
async def test_what_is_not_built_is_refused_by_name(client, stage, name, value):
    answer = await client.post(CHAT_PATH, json=HI | {name: value})
    assert named(answer) == (400, "invalid_request_error", "invalid_request", name)
    assert stage.engine.requests == []


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": [{"role": "user", "content": "Hi", "mood": 1}]}, "messages[0].mood"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}]},
            "messages[0].content[0].x",
        ),
        ({"messages": [{"role": "assistant", "content": "a", "audio": {"id": "x"}}]}, "messages[0].audio"),
        ({"stream": True, "stream_options": {"every": 1}}, "stream_options.every"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"tools": [{"type": "function", "function": {"name": "f"}, "x": 1}]}, "tools[0].x"),
        ({"tool_choice": {"type": "auto", "mode": 1}}, "tool_choice.mode"),
        ({"response_format": {"type": "text", "x": 1}}, "response_format.x"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "x": 1}}},
            "response_format.json_schema.x",
        ),
    ],
)
async def test_what_is_not_built_is_named_by_its_place(client, changes, param):
    assert named(await client.post(CHAT_PATH, json=HI | changes))[3] == param


async def test_a_name_that_is_none_is_not_told_back(client):
    answer = await client.post(CHAT_PATH, json=HI | {"a b": 1})
    assert named(answer)[3] is None
    assert "a b" not in answer.text


async def test_a_lenient_server_answers_and_says_what_it_ignored(lenient, stage):
    answer = await lenient.post(CHAT_PATH, json=HI | {"reasoning_effort": "low", "x": 1, "store": False})
    assert answer.status_code == 200
    assert answer.json()["warnings"] == [
        "reasoning_effort: this is not supported: models here know no such setting; it was ignored",
        "x: there is no such parameter; it was ignored",
    ]
    assert answer.json()["choices"][0]["message"]["content"] == "Hello there"
    assert len(stage.engine.requests) == 1


async def test_a_lenient_server_says_so_once_in_a_stream(lenient):
    answer = await lenient.post(CHAT_PATH, json=HI | {"x": 1, "stream": True})
    chunks = [json.loads(block.removeprefix("data: ")) for block in answer.text.split("\n\n")[:-2]]
    assert chunks[0]["warnings"] == ["x: there is no such parameter; it was ignored"]
    assert ["warnings" in chunk for chunk in chunks] == [True, *([False] * (len(chunks) - 1))]


async def test_a_lenient_server_still_refuses_what_is_out_of_bounds(lenient):
    assert (await lenient.post(CHAT_PATH, json=HI | {"n": 0})).status_code == 400


async def test_every_route_warns(lenient):
    text = await lenient.post(TEXT_PATH, json={"model": "gpt2", "prompt": "Hi", "echo": True})
    vectors = await lenient.post(EMBED_PATH, json={"model": "gpt2", "input": "Hi", "x": 1})
    assert text.json()["warnings"] == ["echo: this is not supported: the prompt is not told again; it was ignored"]
    assert vectors.json()["warnings"] == ["x: there is no such parameter; it was ignored"]


@pytest.mark.parametrize("table", [CHAT, COMPLETION, EMBEDDING, MESSAGE], ids=["chat", "text", "embed", "message"])
def test_every_entry_says_why_in_words(table):
    assert all(rule.reason and not rule.reason.endswith(".") for rule in table.values())


@pytest.mark.parametrize(
    ("rule", "value", "expected"),
    [
        (Tolerated("x", values=(False,)), 0, False),
        (Tolerated("x", values=(1,)), True, False),
        (Tolerated("x", values=(["text"],)), ["text"], True),
        (Tolerated("x", types=(int,)), True, False),
        (Tolerated("x"), None, True),
        (Tolerated("x"), "", False),
    ],
)
def test_a_value_is_what_it_is(rule, value, expected):
    assert rule.allows(value) is expected

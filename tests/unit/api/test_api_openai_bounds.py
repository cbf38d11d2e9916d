"""Bodies under ``/v1`` that are out of bounds: 400, the parameter named, nothing run, nothing repeated."""

from __future__ import annotations

import re

import pytest

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
HI = {"model": "gpt2", "messages": [{"role": "user", "content": "Hi"}]}
JSON = {"Content-Type": "application/json"}
SECRET = "s3cr3t-words-of-the-client"


def user(content):
    return [{"role": "user", "content": content}]


def function(**changes):
    return {"type": "function", "function": {"name": "f"} | changes}


CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
OUT_OF_BOUNDS = [
    ("model", "", "model"),
    ("model", "../etc/passwd", "model"),
    ("model", "x" * 257, "model"),
    ("model", None, "model"),
    ("messages", [], "messages"),
    ("messages", "Hi", "messages"),
    ("messages", [*user("Hi") * 2049], "messages"),
    ("messages", [{"role": "wizard", "content": "Hi"}], "messages[0].role"),
    ("messages", [{"role": "function", "name": "f", "content": "Hi"}], "messages[0].role"),
    ("messages", [*user("Hi"), {"role": "user"}], "messages[1]"),
    ("messages", [{"role": "assistant", "content": None}], "messages[0]"),
    ("messages", user(None), "messages[0]"),
    ("messages", user(5), "messages[0].content"),
    ("messages", user([]), "messages[0].content"),
    ("messages", user([{"type": "text", "text": "a"}] * 257), "messages[0].content"),
    ("messages", user([{"type": "text", "text": 5}]), "messages[0].content[0].text"),
    ("messages", user([{"type": "text", "text": "a"}, {"type": "image_url"}]), "messages[0].content[1].type"),
    ("messages", user([{"type": "input_audio", "input_audio": {}}]), "messages[0].content[0].type"),
    ("messages", [{"role": "tool", "content": "x"}], "messages[0]"),
    ("messages", [{"role": "user", "content": "x", "tool_call_id": "c"}], "messages[0]"),
    ("messages", [{"role": "user", "content": "x", "tool_calls": [CALL]}], "messages[0]"),
    ("messages", [{"role": "assistant", "tool_calls": [CALL | {"type": "custom"}]}], "messages[0].tool_calls[0].type"),
    ("messages", [{"role": "user", "content": "x", "name": ""}], "messages[0].name"),
    ("n", 0, "n"),
    ("n", 17, "n"),
    ("n", 1.0, "n"),
    ("n", True, "n"),
    ("temperature", -0.1, "temperature"),
    ("temperature", 2.1, "temperature"),
    ("temperature", "1", "temperature"),
    ("temperature", True, "temperature"),
    ("top_p", -0.1, "top_p"),
    ("top_p", 1.1, "top_p"),
    ("max_tokens", 0, "max_tokens"),
    ("max_tokens", 601, "max_tokens"),  # this server allows 600
    ("max_completion_tokens", 601, "max_completion_tokens"),
    ("max_completion_tokens", 10**9, "max_completion_tokens"),
    ("min_tokens", 601, "min_tokens"),
    ("seed", 2**63, "seed"),
    ("seed", 1.5, "seed"),
    ("stop", ["x"] * 17, "stop"),
    ("stop", "x" * 129, "stop[0]"),
    ("stop", ["ok", ""], "stop[1]"),
    ("stop", 5, "stop"),
    ("presence_penalty", 2.1, "presence_penalty"),
    ("frequency_penalty", -2.1, "frequency_penalty"),
    ("repetition_penalty", 0, "repetition_penalty"),
    ("top_k", -2, "top_k"),
    ("min_p", 1.1, "min_p"),
    ("logit_bias", {str(token): 1 for token in range(301)}, "logit_bias"),
    ("logit_bias", {"x": 1}, "logit_bias"),
    ("logit_bias", {"-1": 1}, "logit_bias"),
    ("logit_bias", {"\u0663": 1}, "logit_bias"),
    ("logit_bias", {"9" * 5000: 1}, "logit_bias"),
    ("logit_bias", {"5": 100.5}, "logit_bias"),
    ("logit_bias", {"5": True}, "logit_bias"),
    ("logit_bias", {"5": "1"}, "logit_bias"),
    ("logit_bias", [[5, 1]], "logit_bias"),
    ("logprobs", 1, "logprobs"),
    ("top_logprobs", 21, "top_logprobs"),
    ("top_logprobs", 2, "top_logprobs"),  # without logprobs
    ("stream", "true", "stream"),
    ("stream_options", {"include_usage": True}, "stream_options"),  # without stream
    ("stream_options", {"include_usage": 1}, "stream_options.include_usage"),
    ("response_format", {"type": "xml"}, "response_format.type"),
    ("response_format", {"type": "json_schema"}, "response_format"),
    ("response_format", {"type": "text", "json_schema": {"name": "x", "schema": {}}}, "response_format"),
    ("response_format", {"type": "json_schema", "json_schema": {"name": "x"}}, "response_format.json_schema.schema"),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}},
        "response_format.json_schema.name",
    ),
    (
        "response_format",
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": "x" * 65_536}}},
        "response_format.json_schema.schema",
    ),
    ("tools", [{"type": "web_search"}], "tools[0].type"),
    ("tools", [{"type": "function"}], "tools[0].function"),
    ("tools", [function(name="a b")], "tools[0].function.name"),
    ("tools", [function(name="x" * 65)], "tools[0].function.name"),
    ("tools", [function(parameters=[])], "tools[0].function.parameters"),
    ("tools", [function(), function()], "tools"),  # of the same name
    ("tools", [function()] * 129, "tools"),
    ("tool_choice", "sometimes", "tool_choice.type"),
    ("tool_choice", "function", "tool_choice"),
    ("tool_choice", {"type": "function"}, "tool_choice"),
    ("tool_choice", {"type": "auto", "function": {"name": "f"}}, "tool_choice"),
    ("tool_choice", {"type": "allowed_tools", "allowed_tools": {}}, "tool_choice.type"),
    ("tool_choice", "required", "tool_choice"),  # without tools
    ("parallel_tool_calls", 1, "parallel_tool_calls"),
]


@pytest.fixture
async def client(stage, client_of):
    async with client_of(stage.app(max_body_bytes=200_000)) as client:
        yield client


async def test_a_value_beyond_its_bounds_is_refused_by_name_and_nothing_runs(client, stage):
    told = []
    for field, value, _ in OUT_OF_BOUNDS:
        answer = await client.post(CHAT, json=HI | {field: value})
        error = answer.json().get("error", {})
        told.append((answer.status_code, error.get("type"), error.get("code"), field, error.get("param")))
    expected = [(400, "invalid_request_error", "invalid_request", field, param) for field, _, param in OUT_OF_BOUNDS]
    assert told == expected
    assert stage.launcher.engines == []


async def test_a_named_function_must_be_among_the_tools(client):
    choice = {"type": "function", "function": {"name": "g"}}
    answer = await client.post(CHAT, json=HI | {"tools": [function()], "tool_choice": choice})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tool_choice")


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("prompt", "", "prompt[0]"),
        ("prompt", [], "prompt"),
        ("prompt", [1, 2], "prompt"),
        ("prompt", [[1, 2]], "prompt"),
        ("prompt", ["a", 1], "prompt[1]"),
        ("prompt", ["a"] * 17, "prompt"),
        ("prompt", None, "prompt"),
        ("logprobs", 6, "logprobs"),
        ("logprobs", True, "logprobs"),
        ("max_tokens", 0, "max_tokens"),
        ("max_completion_tokens", 5, "max_completion_tokens"),  # no parameter of this route
        ("messages", [], "messages"),
        ("best_of", 2, "best_of"),
        ("echo", True, "echo"),
        ("suffix", "end", "suffix"),
    ],
)
async def test_a_text_completion_out_of_bounds_is_refused_by_name(client, field, value, param):
    answer = await client.post(TEXT, json={"model": "gpt2", "prompt": "Hi"} | {field: value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_prompts_and_choices_are_counted_together(client):
    answer = await client.post(TEXT, json={"model": "gpt2", "prompt": ["a"] * 6, "n": 3})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "n")


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("input", "", "input[0]"),
        ("input", [], "input"),
        ("input", [1, 2], "input"),
        ("input", [[1, 2]], "input"),
        ("input", ["x"] * 2049, "input"),
        ("input", None, "input"),
        ("encoding_format", "hex", "encoding_format"),
        ("dimensions", 0, "dimensions"),
        ("model", "a//b", "model"),
    ],
)
async def test_embeddings_out_of_bounds_are_refused_by_name(client, field, value, param):
    answer = await client.post(EMBED, json={"model": "gpt2", "input": "Hi"} | {field: value})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_what_cannot_be_written_as_json_is_no_schema(client, stage):
    formats = '{"type": "json_schema", "json_schema": {"name": "x", "schema": %s}}'
    schemas = ['{"a": NaN}', '{"a": 1e999}', r'{"a": "\ud800"}', r'{"\udfff": 1}']
    body = '{"model": "gpt2", "messages": [{"role": "user", "content": "Hi"}], "response_format": %s}'
    answers = [await client.post(CHAT, content=body % (formats % schema), headers=JSON) for schema in schemas]
    told = [(answer.status_code, answer.json()["error"]["param"]) for answer in answers]
    assert told == [(400, "response_format.json_schema.schema")] * len(schemas)
    assert stage.launcher.engines == []


@pytest.mark.parametrize("levels", [300, 900, 3000])
async def test_a_schema_nested_without_end_is_no_fault_of_ours(client, levels):
    text = '{"a":' * levels + "1" + "}" * levels
    body = '{"model": "gpt2", "messages": [{"role": "user", "content": "Hi"}], "tools": [%s]}'
    tool = '{"type": "function", "function": {"name": "f", "parameters": %s}}'
    answer = await client.post(CHAT, content=body % (tool % text), headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] in {"invalid_json", "invalid_request"}


async def test_a_lone_surrogate_is_refused(client, stage):
    bodies = [
        (CHAT, r'{"model": "gpt2", "messages": [{"role": "user", "content": "\ud800"}]}'),
        (CHAT, r'{"model": "gpt2", "messages": [{"role": "user", "content": "Hi"}], "\ud800": 1}'),
        (CHAT, r'{"model": "gpt2", "messages": [{"role": "user", "content": "Hi", "\ud800": 1}]}'),
        (CHAT, r'{"model": "gpt2", "messages": [{"role": "user", "content": "Hi"}], "stop": "\udfff"}'),
        (TEXT, r'{"model": "gpt2", "prompt": "\ud800"}'),
        (EMBED, r'{"model": "gpt2", "input": ["\ud800"]}'),
    ]
    answers = [await client.post(path, content=body, headers=JSON) for path, body in bodies]
    told = [(answer.status_code, answer.json()["error"]["code"]) for answer in answers]
    assert told == [(400, "invalid_request")] * len(bodies)
    assert stage.launcher.engines == []


async def test_a_number_that_is_none_is_refused(client, stage):
    numbers, fields = ["NaN", "Infinity", "-Infinity", "1e999"], ["temperature", "top_p", "n", "seed", "min_p"]
    head = '{"model": "gpt2", "messages": [{"role": "user", "content": "Hi"}], '
    bodies = [f'{head}"{field}": {number}}}' for field in fields for number in numbers]
    bodies += [f'{head}"logit_bias": {{"5": {number}}}}}' for number in numbers]
    answers = [await client.post(CHAT, content=body, headers=JSON) for body in bodies]
    assert [answer.status_code for answer in answers] == [400] * len(bodies)
    assert stage.launcher.engines == []


async def test_a_refusal_never_repeats_what_was_sent(client):
    bodies = [
        HI | {"temperature": SECRET},
        HI | {SECRET: SECRET},
        HI | {"messages": [{"role": SECRET, "content": "Hi"}]},
        HI | {"messages": [{"role": "user", "content": {SECRET: SECRET}}]},
        HI | {"messages": [{"role": "user", "content": "Hi", SECRET: 1}]},
        HI | {"logit_bias": {SECRET: 1}},
        HI | {"tool_choice": SECRET},
        HI | {"tools": [function(name=SECRET + " ")]},
        HI | {"response_format": {"type": SECRET}},
        HI | {"metadata": SECRET},
        HI | {"service_tier": SECRET},
        HI | {"model": f"/{SECRET}"},
    ]
    answers = [await client.post(CHAT, json=body) for body in bodies]
    assert [(answer.status_code, SECRET in answer.text) for answer in answers] == [(400, False)] * len(bodies)


async def test_a_refusal_says_what_is_wrong_with_every_field(client):
    answer = await client.post(CHAT, json=HI | {"top_p": 2, "stop": ["a", ""]})
    message = answer.json()["error"]["message"]
    assert re.fullmatch(r"top_p: Input should be [^;]*; stop\[1\]: String should have at least 1 character", message)

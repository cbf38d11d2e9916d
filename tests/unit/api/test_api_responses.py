"""``POST /v1/responses``, whole."""

from __future__ import annotations

import re

import pytest

from fakes import chosen_token
from inferapi.domain.chat import Message, ToolCall
from inferapi.domain.errors import GenerationTimeout, InvalidRequest, OutOfMemory, SessionStoreUnavailable
from inferapi.domain.generation import Constraint, ConstraintKind, SamplingParams, Tool

ASK = {"model": "gpt2", "input": "Hi"}
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


def nested(depth: int) -> dict:
    """A JSON object of so many levels."""
    return {"items": nested(depth - 1)} if depth > 1 else {}


CALL = ("Wait.", '<tool_call>\n{"name": "weather", "arguments"', ': {"city": "Oslo"}}\n</tool_call>')


@pytest.fixture(autouse=True)
async def loaded(stage):
    await stage.load()


@pytest.fixture
async def client(stage, client_of):
    async with client_of(stage.app(max_body_bytes=10**6)) as client:
        yield client


@pytest.fixture
async def calling_client(make_stage, client_of):
    """A client of a model that calls a function."""
    stage = await make_stage(*CALL)
    stage.launcher.facts = {"tool_format": "hermes"}
    await stage.load()
    async with client_of(stage.app()) as client:
        yield client


async def refused(client, stage, **changes) -> dict:
    """The error of a body that is refused before any work."""
    answer = await client.post("/v1/responses", json=ASK | changes)
    assert (answer.status_code, stage.engine.requests) == (400, []), answer.text
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_request")
    return error


async def test_the_response_is_openais(client, stage):
    body = {
        **ASK,
        "instructions": "Be kind.",
        "max_output_tokens": 50,
        "metadata": {"a": "b"},
        "temperature": 0.5,
        "top_p": 0.25,
        "user": "me",
        "safety_identifier": "it is me",
        "prompt_cache_key": "mine",
    }
    answer = await client.post("/v1/responses", json=body)
    told = answer.json()
    assert answer.status_code == 200
    response_id, (message,) = told.pop("id"), told.pop("output")
    assert re.fullmatch(r"resp_[0-9a-f]{48}", response_id)
    assert re.fullmatch(r"msg_[0-9a-f]{48}", message.pop("id"))
    assert message == {
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Hello there", "annotations": [], "logprobs": []}],
    }
    assert told == {
        "object": "response",
        "created_at": int(stage.clock.wall_s()),
        "status": "completed",
        "completed_at": int(stage.clock.wall_s()),
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": "gpt2",
        "usage": {
            "input_tokens": 3,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 2,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 5,
        },
        "instructions": "Be kind.",
        "max_output_tokens": 50,
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": "mine",
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": "it is me",
        "service_tier": "default",
        "store": True,
        "temperature": 0.5,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 0.25,
        "truncation": "disabled",
        "user": "me",
    }


async def test_what_was_asked_reaches_the_engine(client, stage):
    body = {
        **ASK,
        "max_output_tokens": 50,
        "temperature": 0,
        "top_p": 0.25,
        "top_k": 5,
        "min_p": 0.125,
        "repetition_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": -0.5,
        "logit_bias": {"7": -100},
        "min_tokens": 2,
        "ignore_eos": True,
        "seed": 7,
        "stop": ["\n", "END"],
    }
    assert (await client.post("/v1/responses", json=body)).status_code == 200
    assert stage.engine.requests[-1].sampling == SamplingParams(
        max_new_tokens=50,
        temperature=0.0,
        top_k=5,
        top_p=0.25,
        min_p=0.125,
        repetition_penalty=1.5,
        seed=7,
        stop=("\n", "END"),
        min_new_tokens=2,
        ignore_eos=True,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias=((7, -100.0),),
    )


async def test_without_a_word_about_sampling_it_is_openais(client, stage):
    await client.post("/v1/responses", json=ASK)
    assert stage.engine.requests[-1].sampling == SamplingParams(
        max_new_tokens=600, temperature=1.0, repetition_penalty=1.0
    )


async def test_items_are_messages_calls_and_what_they_came_to(client, stage):
    items = [
        {"role": "developer", "content": "Be brief."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Rain"}, _text(" today?")]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {
            "type": "message",
            "id": "msg_1",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Let me see.", "annotations": [], "logprobs": []}],
        },
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": [_text("It "), _text("rains.")]},
        {"role": "assistant", "content": "Rain."},
        {"role": "user", "content": "Thanks."},
    ]
    answer = await client.post("/v1/responses", json={**ASK, "input": items})
    assert answer.status_code == 200, answer.text
    assert stage.engine.requests[-1].prompt.messages == (
        Message("system", "Be brief."),
        Message("user", "Rain today?"),
        Message("assistant", "Let me see.", tool_calls=(ToolCall("call_1", "weather", "{}"),)),
        Message("tool", "It rains.", tool_call_id="call_1"),
        Message("assistant", "Rain."),
        Message("user", "Thanks."),
    )


def _text(text: str) -> dict[str, str]:
    return {"type": "input_text", "text": text}


async def test_what_a_response_told_can_be_sent_back_as_it_is(calling_client):
    first = (await calling_client.post("/v1/responses", json={**ASK, "tools": [WEATHER]})).json()
    call = first["output"][-1]
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "rain"}
    items = [{"role": "user", "content": "Hi"}, *first["output"], output]
    answer = await calling_client.post("/v1/responses", json={**ASK, "input": items, "store": False})
    assert answer.status_code == 200, answer.text


async def test_a_call_is_an_item(calling_client):
    told = (await calling_client.post("/v1/responses", json={**ASK, "tools": [WEATHER]})).json()
    message, call = told["output"]
    assert message["content"][0]["text"] == "Wait."
    assert re.fullmatch(r"fc_[0-9a-f]{48}", call.pop("id"))
    assert call.pop("call_id")
    assert call == {
        "type": "function_call",
        "status": "completed",
        "name": "weather",
        "arguments": '{"city": "Oslo"}',
    }
    assert (told["status"], told["tool_choice"]) == ("completed", "auto")
    assert told["tools"] == [WEATHER | {"strict": False}]


async def test_the_model_is_told_of_the_tools(make_stage, client_of):
    stage = await make_stage()
    stage.launcher.facts = {"tool_format": "hermes"}
    await stage.load()
    async with client_of(stage.app()) as client:
        answer = await client.post("/v1/responses", json={**ASK, "tools": [WEATHER, {"type": "function", "name": "t"}]})
        assert answer.status_code == 200, answer.text
        await client.post("/v1/responses", json={**ASK, "tools": [WEATHER], "tool_choice": "none"})
    first, second = (request.prompt.tools for request in stage.engine.requests)
    parameters = '{"type":"object","properties":{"city":{"type":"string"}}}'
    assert first == (
        Tool("weather", "The weather in a city.", parameters),
        Tool("t", "", '{"type":"object","properties":{}}'),
    )
    assert second == ()


async def test_a_model_that_knows_no_tools_refuses_them(client):
    answer = await client.post("/v1/responses", json={**ASK, "tools": [WEATHER]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tools")


@pytest.mark.parametrize(
    ("text_format", "definition"),
    [
        ({"type": "json_object"}, '{"type":"object"}'),
        ({"type": "json_schema", "name": "n", "schema": {"type": "array"}, "strict": True}, '{"type":"array"}'),
        ({"type": "json_schema", "name": "n", "schema": {}}, "{}"),
    ],
)
async def test_a_format_constrains_the_answer_and_is_told_again(client, stage, text_format, definition):
    answer = await client.post("/v1/responses", json={**ASK, "text": {"format": text_format}})
    assert stage.engine.requests[-1].sampling.constraint == Constraint(ConstraintKind.JSON_SCHEMA, definition)
    told = answer.json()["text"]["format"]
    assert told == ({"description": None, "strict": False} if "name" in text_format else {}) | text_format


async def test_a_format_that_cannot_be_kept_is_refused_by_its_name_here(client, stage):
    stage.engine.fail_with = InvalidRequest(problem="response_format: it cannot be enforced")
    error = (await client.post("/v1/responses", json=ASK)).json()["error"]
    assert error["param"] == "text.format"
    assert error["message"].startswith("text.format: ")


async def test_log_probabilities_are_told_where_they_are_included(client):
    body = {**ASK, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    told = (await client.post("/v1/responses", json=body)).json()
    first = chosen_token("Hello", 1, 2)
    assert told["output"][0]["content"][0]["logprobs"][0] == {
        "token": "Hello",
        "logprob": first.chance.logprob,
        "bytes": list(b"Hello"),
        "top_logprobs": [
            {"token": chance.text, "logprob": chance.logprob, "bytes": list(chance.data)} for chance in first.likeliest
        ],
    }
    assert len(told["output"][0]["content"][0]["logprobs"]) == 2
    assert told["top_logprobs"] == 2


async def test_an_answer_cut_by_its_limit_is_incomplete(client):
    told = (await client.post("/v1/responses", json={**ASK, "max_output_tokens": 1})).json()
    assert (told["status"], told["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (told["completed_at"], told["output"][0]["status"]) == (None, "incomplete")


async def test_reasoning_is_an_item_before_the_message(make_stage, client_of):
    stage = await make_stage("<think>", "Hm.", "</think>", "Rain.")
    stage.launcher.facts = {"reasoning_tags": ("<think>", "</think>")}
    await stage.load()
    async with client_of(stage.app()) as client:
        reasoning, message = (await client.post("/v1/responses", json=ASK)).json()["output"]
    assert reasoning == {
        "id": reasoning["id"],
        "type": "reasoning",
        "status": "completed",
        "summary": [],
        "content": [{"type": "reasoning_text", "text": "Hm."}],
    }
    assert message["content"][0]["text"] == "Rain."


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"context_management": [{"type": "compaction"}]}, "context_management"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"include": ["message.output_text.logprobs", "file_search_call.results"]}, "include[1]"),
        ({"n": 2}, "n"),
        ({"stream": True, "stream_options": {"include_usage": True}}, "stream_options.include_usage"),
        ({"metadata": {str(number): 0 for number in range(1000)}}, "metadata"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": ""}] * 250}] * 20}, "input"),
        ({"tools": [WEATHER | {"parameters": nested(65)}]}, "tools[0].parameters"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 5}, "max_tokens"),
        ({"tools": [WEATHER | {"defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "time"}}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": "always"}, "tool_choice.type"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format"),
        ({"text": {"format": {"type": "text", "strict": True}}}, "text.format"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"max_output_tokens": 601}, "max_output_tokens"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"temperature": 2.5}, "temperature"),
        ({"stream_options": {}}, "stream_options"),
        ({"store": 1}, "store"),
        ({"metadata": {str(number): "" for number in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"user": "x" * 513}, "user"),
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": ""}] * 2049}, "input"),
        ({"input": [{}]}, "input[0]"),
        ({"input": [{"role": "user"}]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "n"}]}, "input[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input"),
        ({"input": [{"role": "user", "content": "x", "call_id": "c"}]}, "input[0].call_id"),
        ({"input": [{"role": "user", "content": "x", "colour": "red"}]}, "input[0].colour"),
        ({"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}, "input[0].encrypted_content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "reasoning_text", "text": "x"}]}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [_text("x") | {"colour": "red"}]}]}, "input[0].content[0].colour"),
    ],
)
async def test_what_is_wrong_or_not_built_is_refused_by_its_name(client, stage, changes, param):
    error = await refused(client, stage, **changes)
    assert error["param"] == param


@pytest.mark.parametrize("name", ["model", "input"])
async def test_the_model_and_the_input_are_needed(client, name):
    answer = await client.post("/v1/responses", json={key: value for key, value in ASK.items() if key != name})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


@pytest.mark.parametrize(
    "changes",
    [
        {"background": False, "truncation": "disabled", "service_tier": "auto", "n": 1, "max_tool_calls": 3},
        {"reasoning": {"effort": None, "summary": None}, "text": {"verbosity": "medium"}, "include": []},
        {"conversation": None, "prompt": None, "previous_response_id": None, "tools": [], "tool_choice": "none"},
        {"metadata": None, "user": None, "store": None, "stream": None, "temperature": None, "instructions": None},
        {"stream": False, "parallel_tool_calls": False, "text": {}, "reasoning": {}, "context_management": []},
    ],
)
async def test_what_changes_nothing_may_be_said(client, changes):
    assert (await client.post("/v1/responses", json=ASK | changes)).status_code == 200


async def test_a_lenient_server_warns_of_what_it_ignores(stage, client_of):
    async with client_of(stage.app(lenient_params=True)) as client:
        body = {**ASK, "truncation": "auto", "colour": "red", "reasoning": {"effort": "high"}}
        told = (await client.post("/v1/responses", json=body)).json()
        again = (await client.get(f"/v1/responses/{told['id']}")).json()
    assert [warning.split(":")[0] for warning in told["warnings"]] == ["truncation", "colour", "reasoning.effort"]
    assert again == told


async def test_no_client_text_is_told_back_in_an_error(client, stage):
    secret = "s3cr3t words"
    for changes in ({secret: 1}, {"tool_choice": secret}, {"input": [{"role": secret, "content": secret}]}):
        assert secret not in str(await refused(client, stage, **changes))


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(OutOfMemory(), 503, "insufficient_memory"), (GenerationTimeout(timeout_s=300.0), 504, "generation_timeout")],
)
async def test_an_answer_that_failed_is_an_error(client, stage, error, status, code):
    stage.engine.fail_with = error
    answer = await client.post("/v1/responses", json=ASK)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


async def test_a_prompt_that_is_too_long_is_400(client):
    answer = await client.post("/v1/responses", json={**ASK, "input": "a " * 1024, "max_output_tokens": 10})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


async def test_a_store_that_is_away_is_503_for_those_who_need_it(client, stage):
    stage.store.errors["begin"] = SessionStoreUnavailable()
    answer = await client.post("/v1/responses", json=ASK)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "session_store_unavailable")
    assert (await client.post("/v1/responses", json={**ASK, "store": False})).status_code == 200


async def test_a_response_that_could_not_be_stored_is_told_so(client, stage):
    stage.store.errors["commit"] = SessionStoreUnavailable()
    answer = await client.post("/v1/responses", json=ASK)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "history_not_saved")
    assert answer.headers["x-should-retry"] == "false"


async def test_another_model_is_loaded_if_need_be(make_stage, client_of):
    stage = await make_stage(max_resident_models=2)
    await stage.load()
    async with client_of(stage.app()) as client:
        told = (await client.post("/v1/responses", json={**ASK, "model": "other"})).json()
    assert (told["model"], stage.launcher.live) == ("other", ["gpt2", "other"])


@pytest.mark.parametrize(("model", "status"), [("nowhere", 404), ("../etc", 400)])
async def test_a_model_that_is_none_is_named(client, model, status):
    answer = await client.post("/v1/responses", json={**ASK, "model": model})
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, "model")


@pytest.mark.parametrize(
    "fields",
    [
        rb'"input":"\ud800"',
        rb'"input":[{"role":"user","content":"\udfff"}]',
        rb'"input":[{"role":"user","content":[{"type":"input_text","text":"\ud800"}]}]',
        rb'"input":"Hi","instructions":"\ud800"',
        rb'"input":"Hi","metadata":{"\ud800":"a"}',
        rb'"input":"Hi","metadata":{"a":"\ud800"}',
        rb'"input":"Hi","user":"\ud800"',
        rb'"input":"Hi","\ud800":1',
        rb'"input":"Hi","tools":[{"type":"function","name":"t","parameters":{"\ud800":1}}]',
        rb'"input":"Hi","tools":[{"type":"function","name":"t","parameters":{"a":NaN}}]',
        rb'"input":"Hi","text":{"format":{"type":"json_schema","name":"n","schema":{"a":"\ud800"}}}',
        rb'"input":"Hi","temperature":NaN',
        rb'"input":"Hi","top_p":Infinity',
        rb'"input":"Hi","previous_response_id":"\ud800"',
        rb'"input":' + b'[{"role":"user","content":' * 200 + b'"x"' + b"}]" * 200,
    ],
)
async def test_what_no_text_and_no_number_can_be_is_400(client, stage, fields):
    body = b'{"model":"gpt2",' + fields + b"}"
    answer = await client.post("/v1/responses", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, stage.engine.requests) == (400, []), answer.text

"""``POST /v1/chat/completions``: OpenAI's objects, and what its parameters come to in the engine."""

from __future__ import annotations

import pytest

from fakes import chosen_token
from inferapi.domain.chat import Message, ToolCall
from inferapi.domain.generation import Constraint, ConstraintKind, Prompt, SamplingParams

PATH = "/v1/chat/completions"
HI = {"model": "gpt2", "messages": [{"role": "user", "content": "Hi"}]}
DEFAULTS = SamplingParams(
    max_new_tokens=600,  # this server's limit: the context window has room for them
    temperature=1.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    repetition_penalty=1.0,
    seed=None,
    stop=(),
    min_new_tokens=0,
    ignore_eos=False,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    logit_bias=(),
    top_logprobs=None,
    constraint=None,
)


async def test_an_answer_is_openais_object_to_the_key(client):
    answer = await client.post(PATH, json=HI)
    body = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert body.pop("id").startswith("chatcmpl-")
    assert type(body.pop("created")) is int
    assert body == {
        "object": "chat.completion",
        "model": "gpt2",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello there", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 1,
            "completion_tokens": 2,
            "total_tokens": 3,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }


async def test_the_model_that_is_named_is_loaded_on_demand(client, stage):
    answer = await client.post(PATH, json=HI | {"model": "org/name"})
    assert answer.json()["model"] == "org/name"
    assert stage.launcher.live == ["org/name"]


async def test_what_nobody_says_is_as_openai_has_it(client, stage):
    await client.post(PATH, json=HI)
    (request,) = stage.engine.requests
    assert request.prompt == Prompt(messages=(Message("user", "Hi"),))
    assert request.sampling == DEFAULTS


async def test_null_is_as_if_nothing_was_said(client, stage):
    names = "n temperature top_p stop seed logit_bias presence_penalty frequency_penalty stream stream_options top_k"
    more = "min_p repetition_penalty min_tokens ignore_eos max_tokens max_completion_tokens logprobs top_logprobs"
    most = "response_format tools tool_choice parallel_tool_calls user store metadata audio functions service_tier"
    body = HI | dict.fromkeys(f"{names} {more} {most}".split())
    assert (await client.post(PATH, json=body)).status_code == 200
    assert stage.engine.requests[0].sampling == DEFAULTS


async def test_everything_that_can_be_asked_reaches_the_engine(client, stage):
    asked = {
        "max_completion_tokens": 7,
        "max_tokens": 9,  # the older name gives way
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.5,
        "seed": -3,
        "stop": ["\n", "END"],
        "min_tokens": 2,
        "ignore_eos": True,
        "presence_penalty": -2,
        "frequency_penalty": 1.5,
        "logit_bias": {"50256": -100, "7": 0.5},
        "logprobs": True,
        "top_logprobs": 3,
    }
    answer = await client.post(PATH, json=HI | asked)
    assert answer.status_code == 200
    assert stage.engine.requests[0].sampling == SamplingParams(
        max_new_tokens=7,
        temperature=0.0,
        top_p=0.5,
        top_k=40,
        min_p=0.05,
        repetition_penalty=1.5,
        seed=-3,
        stop=("\n", "END"),
        min_new_tokens=2,
        ignore_eos=True,
        presence_penalty=-2.0,
        frequency_penalty=1.5,
        logit_bias=((50256, -100.0), (7, 0.5)),
        top_logprobs=3,
        constraint=None,
    )


@pytest.mark.parametrize(
    ("asked", "name", "expected"),
    [
        ({"stop": "END"}, "stop", ("END",)),
        ({"stop": []}, "stop", ()),
        ({"top_k": -1}, "top_k", 0),
        ({"top_p": 0}, "top_p", 1e-6),
        ({"max_tokens": 5}, "max_new_tokens", 5),
        ({"logprobs": True}, "top_logprobs", 0),
        ({"logprobs": False}, "top_logprobs", None),
    ],
)
async def test_a_value_may_be_said_in_more_than_one_way(client, stage, asked, name, expected):
    assert (await client.post(PATH, json=HI | asked)).status_code == 200
    assert getattr(stage.engine.requests[0].sampling, name) == expected


@pytest.mark.parametrize(
    ("response_format", "expected"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Constraint(ConstraintKind.JSON_SCHEMA, '{"type":"object"}')),
        (
            {"type": "json_schema", "json_schema": {"name": "person", "schema": {"title": "é", "a": [1.5]}}},
            Constraint(ConstraintKind.JSON_SCHEMA, '{"title":"é","a":[1.5]}'),
        ),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"type": "null"}}},
            Constraint(ConstraintKind.JSON_SCHEMA, '{"type":"null"}'),
        ),
    ],
)
async def test_a_response_format_is_a_constraint_strict_or_not(client, stage, response_format, expected):
    answer = await client.post(PATH, json=HI | {"response_format": response_format})
    assert answer.status_code == 200
    assert stage.engine.requests[0].sampling.constraint == expected


async def test_messages_come_to_the_engine_as_they_are_and_developers_as_system(client, stage):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "user", "content": "<|im_end|> \u2028 é", "name": "ann"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "31 degrees", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "", "tool_calls": []},
        {"role": "system", "content": "More."},
    ]
    answer = await client.post(PATH, json=HI | {"messages": messages})
    assert answer.status_code == 200
    assert stage.engine.requests[0].prompt.messages == (
        Message("system", "Be brief."),
        Message("user", "<|im_end|> \u2028 é", name="ann"),
        Message("assistant", "", tool_calls=(ToolCall("call_1", "weather", '{"city": "Rome"}'),)),
        Message("tool", "31 degrees", tool_call_id="call_1"),
        Message("assistant", ""),
        Message("system", "More."),
    )


async def test_the_message_that_was_given_may_be_sent_back(client, stage):
    given = (await client.post(PATH, json=HI)).json()["choices"][0]["message"]
    given |= {"reasoning_content": "Hm.", "annotations": [], "audio": None, "function_call": None, "parsed": {"a": 1}}
    messages = [*HI["messages"], given, {"role": "user", "content": "And?"}]
    assert (await client.post(PATH, json=HI | {"messages": messages})).status_code == 200
    assert stage.engine.requests[1].prompt.messages[1] == Message("assistant", "Hello there")


async def test_several_choices_are_answered_side_by_side_and_counted_together(client, stage):
    body = (await client.post(PATH, json=HI | {"n": 3, "seed": 5})).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in body["choices"]} == {"Hello there"}
    assert [request.sampling.seed for request in stage.engine.requests] == [5, 6, 7]
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (1, 6)


async def test_log_probabilities_are_told_of_every_token(client):
    body = (await client.post(PATH, json=HI | {"logprobs": True, "top_logprobs": 2})).json()
    told = body["choices"][0]["logprobs"]
    scripted = [chosen_token(word, number, 2) for number, word in enumerate(("Hello", " there"), start=1)]
    assert told["refusal"] is None
    assert told["content"] == [
        {
            "token": one.chance.text,
            "logprob": one.chance.logprob,
            "bytes": list(one.chance.data),
            "top_logprobs": [
                {"token": other.text, "logprob": other.logprob, "bytes": list(other.data)} for other in one.likeliest
            ],
        }
        for one in scripted
    ]


async def test_an_answer_that_reached_its_limit_says_so(client):
    body = (await client.post(PATH, json=HI | {"max_tokens": 1})).json()
    assert (body["choices"][0]["message"]["content"], body["choices"][0]["finish_reason"]) == ("Hello", "length")


async def test_without_a_limit_an_answer_is_as_long_as_the_window_has_room_for(stage, client_of):
    words = "w " * 1000  # of 1024, so that the server's 600 are too many
    async with client_of(stage.app(max_body_bytes=10_000)) as client:
        message = {"role": "user", "content": words}
        answer = await client.post(PATH, json=HI | {"messages": [message]})
        asked_for = await client.post(PATH, json=HI | {"messages": [message], "max_tokens": 25})
    assert (answer.status_code, asked_for.status_code) == (200, 400)
    assert [request.sampling.max_new_tokens for request in stage.engine.requests] == [600, 24, 25]
    assert asked_for.json()["error"]["code"] == "context_length_exceeded"

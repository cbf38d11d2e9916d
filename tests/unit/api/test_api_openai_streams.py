"""Streams under ``/v1``: chunks until ``[DONE]``, the role first, the usage last, errors instead of the end."""

from __future__ import annotations

import json

import pytest

from fakes import settle
from inferapi.domain.errors import OutOfMemory, QueueFull

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = {"model": "gpt2", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
DONE = "[DONE]"


@pytest.fixture(autouse=True)
async def loaded(stage):
    await stage.load()


def events(text: str) -> list:
    """The data of every event; fails on anything that is neither an event nor a comment."""
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    assert all(block.startswith(("data: ", ": ")) and "\n" not in block for block in blocks)
    data = [block.removeprefix("data: ") for block in blocks if block.startswith("data: ")]
    return [entry if entry == DONE else json.loads(entry) for entry in data]


def choice(delta, finish_reason=None, *, index=0, logprobs=None):
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


async def test_a_chat_stream_is_the_role_the_text_the_reason_and_done(client):
    answer = await client.post(CHAT, json=HI)
    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, "text/event-stream")
    *chunks, done = events(answer.text)
    assert done == DONE
    heads = [{key: chunk.pop(key) for key in ("id", "object", "created", "model")} for chunk in chunks]
    assert heads == [heads[0]] * len(heads)
    assert (heads[0]["object"], heads[0]["model"]) == ("chat.completion.chunk", "gpt2")
    assert heads[0]["id"].startswith("chatcmpl-")
    assert chunks == [
        {"choices": [choice({"role": "assistant", "content": ""})]},
        {"choices": [choice({"content": "Hello"})]},
        {"choices": [choice({"content": " there"})]},
        {"choices": [choice({}, "stop")]},
    ]


async def test_the_usage_is_a_chunk_of_its_own_where_it_is_asked_for(client):
    answer = await client.post(CHAT, json=HI | {"stream_options": {"include_usage": True}})
    *chunks, last, done = events(answer.text)
    assert done == DONE
    assert [chunk["usage"] for chunk in chunks] == [None] * 4
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


async def test_each_choice_has_its_role_and_its_end(client):
    *chunks, _ = events((await client.post(CHAT, json=HI | {"n": 2})).text)
    by_index = {0: [], 1: []}
    for chunk in chunks:
        (one,) = chunk["choices"]
        by_index[one["index"]].append((one["delta"], one["finish_reason"]))
    whole = [({"role": "assistant", "content": ""}, None), ({"content": "Hello"}, None), ({"content": " there"}, None)]
    assert by_index == {0: [*whole, ({}, "stop")], 1: [*whole, ({}, "stop")]}


async def test_log_probabilities_ride_on_their_text(client):
    *chunks, _ = events((await client.post(CHAT, json=HI | {"logprobs": True})).text)
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    tokens = [[token["token"] for token in one["content"]] if one else None for one in told]
    assert tokens == [None, ["Hello"], [" there"], None]


async def test_the_first_event_goes_out_before_the_second_token_is_there(stage, call):
    stage.engine.gate.hold()
    request = call(stage.app(), CHAT, HI)
    await settle()
    role, first = events(request.body.decode())
    assert role["choices"][0]["delta"]["role"] == "assistant"
    assert first["choices"][0]["delta"] == {"content": "Hello"}
    stage.engine.gate.open()
    await request.task
    assert events(request.body.decode())[-1] == DONE


async def test_text_with_line_breaks_stays_inside_its_event(make_stage, client_of):
    words = ("data: [DONE]\n\n", "\r\n\r\n", ": ping\n", "\u2028é🙂")
    stage = await make_stage(*words)
    async with client_of(stage.app()) as client:
        answer = await client.post(CHAT, json=HI)
    *chunks, done = events(answer.text)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert (text, done) == ("".join(words), DONE)


async def test_a_stream_pings_while_its_model_is_loaded(make_stage, call, loop_time):
    stage = await make_stage()
    stage.launcher.gate.hold()
    request = call(stage.app(), CHAT, HI)
    await loop_time(10.5)
    assert (request.status, request.body) == (200, b": ping\n\n")
    stage.launcher.gate.open()
    await request.task
    assert events(request.body.decode())[-1] == DONE


async def test_an_error_on_the_way_is_an_event_in_openais_shape_without_done(client, stage):
    stage.engine.fail_with = OutOfMemory()
    answer = await client.post(CHAT, json=HI)
    assert answer.status_code == 200
    *chunks, error = events(answer.text)
    assert len(chunks) == 3
    assert error == {
        "error": {
            "message": "The model ran out of memory on this request.",
            "type": "server_error",
            "param": None,
            "code": "insufficient_memory",
        }
    }


async def test_an_unforeseen_error_is_told_as_one_of_ours(client, stage):
    stage.engine.fail_with = ZeroDivisionError("a secret")
    answer = await client.post(CHAT, json=HI)
    assert events(answer.text)[-1]["error"]["code"] == "internal_error"
    assert "secret" not in answer.text


async def test_an_error_before_the_first_event_keeps_its_status(make_stage, client_of):
    stage = await make_stage("")
    (await stage.load()).fail_with = QueueFull(waiting=64)
    async with client_of(stage.app()) as client:
        answer = await client.post(CHAT, json=HI)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_full")
    assert answer.headers["retry-after"] == "1"


async def test_a_prompt_that_is_too_long_keeps_its_status(stage, client_of):
    body = HI | {"messages": [{"role": "user", "content": "w " * 1024}]}
    async with client_of(stage.app(max_body_bytes=10_000)) as client:
        answer = await client.post(CHAT, json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")


async def test_a_text_stream_is_its_pieces_and_done(client):
    answer = await client.post(TEXT, json={"model": "gpt2", "prompt": "Hi", "stream": True})
    *chunks, done = events(answer.text)
    assert done == DONE
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    assert [chunk["choices"] for chunk in chunks] == [
        [{"index": 0, "text": "Hello", "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": " there", "logprobs": None, "finish_reason": None}],
        [{"index": 0, "text": "", "logprobs": None, "finish_reason": "stop"}],
    ]


async def test_the_columns_of_a_text_stream_go_on_where_they_were(client):
    body = {"model": "gpt2", "prompt": "Hi", "stream": True, "logprobs": 1}
    *chunks, _ = events((await client.post(TEXT, json=body)).text)
    told = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [(one["tokens"], one["text_offset"]) for one in told if one] == [(["Hello"], [0]), ([" there"], [5])]


BODIES = [
    (CHAT, HI),
    (CHAT, HI | {"stream": False}),
    (CHAT, HI | {"n": 3}),
    (TEXT, {"model": "gpt2", "prompt": ["a", "b"], "stream": True}),
    (TEXT, {"model": "gpt2", "prompt": ["a", "b"]}),
]


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_all_choices_end_with_their_client(stage, call, path, body):
    stage.engine.gate.hold()
    request = call(stage.app(), path, body)
    await settle()
    running = stage.engine.in_flight
    await request.leave()
    assert request.task.done()
    assert running == max(body.get("n", 1), len(body.get("prompt", [0])))
    assert (stage.engine.in_flight, stage.engine.cancelled) == (0, running)
    assert [line.in_flight for line in stage.lifecycle.status()] == [0]


async def test_a_client_that_leaves_while_it_waits_for_a_model_is_forgotten_and_the_load_goes_on(make_stage, call):
    stage = await make_stage()
    stage.launcher.gate.hold()
    request = call(stage.app(), CHAT, HI)
    await settle()
    await request.leave()
    assert request.task.done()
    stage.launcher.gate.open()
    await settle()
    assert (stage.launcher.live, stage.engine.requests) == (["gpt2"], [])

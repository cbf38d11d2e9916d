"""``POST /infer``: its body exact to the key, and what reaches the engine."""

from __future__ import annotations

import pytest

from inferapi.domain.chat import Message, SessionRef
from inferapi.domain.errors import OutOfMemory
from inferapi.domain.generation import Prompt, SamplingParams

OUT_OF_BOUNDS = [
    ("text", ""),
    ("text", "x" * 1_000_001),
    ("text", 5),
    ("text", None),
    ("text", ["Hi"]),
    ("max_new_tokens", 0),
    ("max_new_tokens", 601),  # this server allows 600
    ("max_new_tokens", 10**9),
    ("max_new_tokens", 5.0),
    ("max_new_tokens", "5"),
    ("max_new_tokens", True),
    ("temperature", -0.1),
    ("temperature", 101),
    ("temperature", "0.7"),
    ("temperature", False),
    ("repetition_penalty", 0),
    ("repetition_penalty", 11),
    ("top_p", 0),
    ("top_p", 1.1),
    ("top_k", -1),
    ("min_p", 1.1),
    ("seed", 2**64),
    ("seed", -(2**63) - 1),
    ("seed", 1.0),
    ("stop", [""]),
    ("stop", ["x"] * 17),
    ("stop", "x" * 257),
    ("stop", [5]),
    ("min_new_tokens", 101),  # more than max_new_tokens
    ("ignore_eos", 1),
    ("stream", "true"),
    ("details", 1),
    ("session_id", ""),
    ("session_id", "a b"),
    ("session_id", "a/b"),
    ("session_id", "a\n"),
    ("session_id", "x" * 129),
    ("session_id", "é"),
    ("trust_remote_code", True),
    ("device", "cuda"),
]


@pytest.fixture(autouse=True)
async def loaded(stage):
    await stage.load()


async def test_infer_answers_the_input_and_the_continuation_alone(client):
    answer = await client.post("/infer", json={"text": "Hello, how are you?"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {"input": "Hello, how are you?", "result": "Hello there"}


async def test_infer_takes_the_manuals_example(client, stage):
    body = {
        "text": "Hello, how are you?",
        "max_new_tokens": 100,
        "temperature": 0.7,
        "repetition_penalty": 1.1,
        "session_id": "12345",
    }
    answer = await client.post("/infer", json=body)
    assert answer.json() == {"input": "Hello, how are you?", "result": "Hello there"}
    (request,) = stage.engine.requests
    assert request.affinity == "12345"
    assert await stage.store.get(SessionRef("", "12345")) is None


async def test_only_text_is_required_and_the_rest_has_the_manuals_defaults(client, stage):
    await client.post("/infer", json={"text": "Hi"})
    (request,) = stage.engine.requests
    assert request.prompt == Prompt(text="Hi")
    assert request.sampling == SamplingParams(
        max_new_tokens=100,
        temperature=0.7,
        top_k=0,
        top_p=1.0,
        min_p=0.0,
        repetition_penalty=1.1,
        seed=None,
        stop=(),
        min_new_tokens=0,
        ignore_eos=False,
    )
    assert request.affinity is None


async def test_everything_that_can_be_asked_reaches_the_engine(client, stage):
    asked = {
        "max_new_tokens": 7,
        "temperature": 0,
        "top_k": 40,
        "top_p": 0.9,
        "min_p": 0.05,
        "repetition_penalty": 1,
        "seed": -3,
        "stop": ["\n", "END"],
        "min_new_tokens": 2,
        "ignore_eos": True,
    }
    answer = await client.post("/infer", json={"text": "Hi", **asked})
    assert answer.status_code == 200
    assert stage.engine.requests[0].sampling == SamplingParams(**{**asked, "stop": ("\n", "END")})


async def test_one_stop_string_need_not_be_a_list(client, stage):
    await client.post("/infer", json={"text": "Hi", "stop": "END"})
    assert stage.engine.requests[0].sampling.stop == ("END",)


async def test_infer_uses_the_chat_template_when_asked(client, stage):
    await client.post("/infer", json={"text": "Hi", "chat": True})
    assert stage.engine.requests[0].prompt == Prompt(messages=(Message("user", "Hi"),))


async def test_details_are_added_when_asked(client):
    answer = await client.post("/infer", json={"text": "Hi you", "details": True})
    assert answer.json() == {
        "input": "Hi you",
        "result": "Hello there",
        "details": {
            "finish_reason": "stop",
            "usage": {
                "prompt_tokens": 2,
                "completion_tokens": 2,
                "total_tokens": 4,
                "dropped_turns": 0,
                "cached_tokens": 0,
            },
            "timings": {
                "queue_s": 0.25,
                "time_to_first_token_s": 0.5,
                "inter_token_latency_s": 0.125,
                "total_s": 1.0,
            },
            "model": "gpt2",
        },
    }


async def test_details_tell_an_answer_that_reached_its_limit(client):
    answer = await client.post("/infer", json={"text": "Hi", "max_new_tokens": 1, "details": True})
    assert (answer.json()["result"], answer.json()["details"]["finish_reason"]) == ("Hello", "length")


async def test_text_comes_back_as_it_was_sent(client):
    text = 'a\n\t"b" \\ \u2028 é 漢字 🙂 \x1f <|im_end|>'
    assert (await client.post("/infer", json={"text": text})).json()["input"] == text


async def test_a_value_beyond_its_bounds_is_refused_and_nothing_runs(stage, client_of):
    refused = []
    async with client_of(stage.app(max_body_bytes=2_000_000)) as client:
        for field, value in OUT_OF_BOUNDS:
            answer = await client.post("/infer", json={"text": "Hi", field: value})
            if (answer.status_code, answer.json().get("code")) == (422, "invalid_request"):
                refused.append((field, value))
    assert refused == OUT_OF_BOUNDS
    assert stage.engine.requests == []


async def test_a_prompt_beyond_the_context_window_is_refused_with_the_counts(client):
    answer = await client.post("/infer", json={"text": "w " * 1000})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "context_length_exceeded")
    assert (problem["prompt_tokens"], problem["max_new_tokens"], problem["context_window_tokens"]) == (1000, 100, 1024)


async def test_a_request_that_found_no_memory_may_be_tried_again(client, stage):
    stage.engine.fail_with = OutOfMemory()
    answer = await client.post("/infer", json={"text": "Hi"})
    assert (answer.status_code, answer.json()["code"]) == (503, "insufficient_memory")
    assert answer.headers["retry-after"] == "5"


async def test_infer_without_a_model_is_refused(make_stage, client_of):
    async with client_of((await make_stage()).app()) as client:
        answer = await client.post("/infer", json={"text": "Hi"})
    assert (answer.status_code, answer.json()["code"]) == (409, "model_not_loaded")

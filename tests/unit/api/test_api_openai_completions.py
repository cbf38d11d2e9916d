"""``POST /v1/completions``: texts continued as they are, several at once, with log-probabilities in columns."""

from __future__ import annotations

import asyncio

import pytest

from fakes import settle
from inferapi.api.openai.text_answers import TokenTable
from inferapi.domain.errors import OutOfMemory
from inferapi.domain.generation import ChosenToken, Prompt, SamplingParams, TokenChance

PATH = "/v1/completions"
HI = {"model": "gpt2", "prompt": "Hi you"}


@pytest.fixture(autouse=True)
async def loaded(stage):
    await stage.load()


async def test_an_answer_is_openais_object_to_the_key(client, stage):
    body = (await client.post(PATH, json=HI)).json()
    assert body.pop("id").startswith("cmpl-")
    assert type(body.pop("created")) is int
    assert body == {
        "object": "text_completion",
        "model": "gpt2",
        "choices": [{"index": 0, "text": "Hello there", "logprobs": None, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 2,
            "completion_tokens": 2,
            "total_tokens": 4,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
    }
    (request,) = stage.engine.requests
    assert request.prompt == Prompt(text="Hi you")
    assert request.sampling == SamplingParams(max_new_tokens=16, temperature=1.0, repetition_penalty=1.0)


async def test_a_text_that_looks_like_a_call_or_a_thought_stays_text(make_stage, client_of):
    text = '<think>Hm.</think><tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'
    stage = await make_stage(text)
    stage.launcher.facts = {"tool_format": "hermes", "reasoning_tags": ("<think>", "</think>")}
    async with client_of(stage.app()) as client:
        body = (await client.post(PATH, json=HI)).json()
    assert (body["choices"][0]["text"], body["choices"][0]["finish_reason"]) == (text, "stop")


async def test_several_prompts_are_answered_side_by_side_in_order(client, stage):
    stage.engine.gate.hold()
    body = HI | {"prompt": ["a", "b b", "c c c"], "n": 2}
    task = asyncio.create_task(client.post(PATH, json=body))
    await settle()
    assert (stage.engine.running, stage.engine.in_flight) == (4, 6)  # this stage has 4 slots
    stage.engine.gate.open()
    told = (await task).json()
    assert [choice["index"] for choice in told["choices"]] == [0, 1, 2, 3, 4, 5]
    assert (told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]) == (6, 12)
    texts = [request.prompt.text for request in stage.engine.requests]
    assert sorted(texts) == ["a", "a", "b b", "b b", "c c c", "c c c"]


async def test_a_prompt_that_fails_fails_all_of_them(client, stage):
    stage.engine.fail_with = OutOfMemory()
    answer = await client.post(PATH, json=HI | {"prompt": ["a", "b"]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "insufficient_memory")
    assert stage.engine.in_flight == 0


async def test_log_probabilities_are_columns(client):
    body = (await client.post(PATH, json=HI | {"logprobs": 2})).json()
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["Hello", " there"],
        "token_logprobs": [-0.125, -0.25],
        "top_logprobs": [{"Hello": -0.125, "Hello~1": -1.125}, {" there": -0.25, " there~1": -1.25}],
        "text_offset": [0, 5],
    }


async def test_without_likeliest_ones_only_the_chosen_are_told(client):
    told = (await client.post(PATH, json=HI | {"logprobs": 0})).json()["choices"][0]["logprobs"]
    assert (told["tokens"], told["top_logprobs"]) == (["Hello", " there"], None)


def chance(text: str, data: bytes, logprob: float) -> TokenChance:
    return TokenChance(1, text, data, logprob)


def test_a_part_of_a_character_is_named_by_its_bytes_and_takes_no_room():
    first, second = "é".encode()[:1], "é".encode()[1:]
    tokens = [ChosenToken(chance("", data, -1.0)) for data in (b"a", first, second, b"b")]
    table = TokenTable(0)
    told = table.columns(tokens[:2])
    more = table.columns(tokens[2:])
    assert told["tokens"][1:] + more["tokens"][:1] == ["bytes:\\xc3", "bytes:\\xa9"]
    assert told["text_offset"] + more["text_offset"] == [0, 1, 1, 2]


def test_the_chosen_token_is_told_beside_the_likeliest():
    likeliest = tuple(chance(text, text.encode(), -number) for number, text in enumerate("abc", start=1))
    table = TokenTable(2)
    (told,) = table.columns([ChosenToken(chance("z", b"z", -9.0), likeliest)])["top_logprobs"]
    assert told == {"a": -1, "b": -2, "z": -9.0}


def test_of_two_tokens_with_the_same_name_the_likelier_one_counts():
    likeliest = (chance("a", b"a", -1.0), chance("a", b"a", -2.0))
    (told,) = TokenTable(2).columns([ChosenToken(likeliest[0], likeliest)])["top_logprobs"]
    assert told == {"a": -1.0}

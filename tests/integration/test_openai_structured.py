"""Structured outputs: whatever a tiny model at temperature 1 says, what ends by itself keeps its schema."""

import asyncio
import functools
import json
from collections import Counter

import httpx
import pytest
from jsonschema import Draft202012Validator
from live_server import DEMO, PATIENCE_S, events

pytestmark = pytest.mark.model

EACH, TOKENS = 10, 160
WORDS = ["red", "green", "blue"]
GREETINGS = ["Grüß Gott", "こんにちは", "👋🏽 hello", 'a "quoted"\nline']


def closed(required=None, **properties):
    """An object of these properties and no others; all are required unless told otherwise."""
    required = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def several(items, least, most):
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


WORD = {"type": "string", "minLength": 1, "maxLength": 12}
AGE = {"type": "integer", "minimum": 0, "maximum": 120}
TRUTH = {"type": "boolean"}
SCHEMAS = {
    "one of some words": closed(colour={"enum": WORDS}),
    "constants of every kind": closed(
        a={"const": "x"}, b={"const": 7}, c={"const": None}, d={"const": True}, e={"const": [1, "zwei", {"drei": 3}]}
    ),
    "words of bounded length": closed(name=WORD, title=WORD),
    "whole numbers in bounds": closed(
        a={"type": "integer", "minimum": -5, "maximum": 5}, b={"type": "integer", "minimum": 100, "maximum": 1000}
    ),
    "numbers in bounds": closed(
        ratio={"type": "number", "minimum": 0, "maximum": 1},
        above={"type": "integer", "exclusiveMinimum": 2, "maximum": 9},
    ),
    "multiples": closed(dozens={"type": "integer", "multipleOf": 12, "minimum": 0, "maximum": 600}),
    "truth and nothing": closed(yes={"type": "boolean"}, nothing={"type": "null"}),
    "several types at once": closed(value={"type": ["integer", "boolean", "null"]}),
    "patterns": closed(
        plate={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
        day={"type": "string", "pattern": "^20[0-9]{2}-[01][0-9]$"},
    ),
    "a list of words": closed(colours=several({"enum": WORDS}, 1, 4)),
    "a list of lists": closed(rows=several(several({"type": "integer", "minimum": 0, "maximum": 9}, 2, 2), 1, 3)),
    "a tuple": closed(
        pair={"type": "array", "prefixItems": [{"type": "boolean"}, {"enum": WORDS}], "items": False, "minItems": 2}
    ),
    "objects in objects": closed(a=closed(b=closed(c={"enum": WORDS}), d={"type": "boolean"})),
    "a list of objects": closed(people=several(closed(name=WORD, age=AGE), 1, 2)),
    "properties that may lack": closed(["a"], a={"type": "boolean"}, b={"enum": WORDS}, c={"type": "null"}),
    "one or the other": {"anyOf": [closed(kind={"const": "dog"}, barks=TRUTH), closed(kind={"const": "cat"})]},
    "a definition": closed(first={"$ref": "#/$defs/colour"}, second={"$ref": "#/$defs/colour"})
    | {"$defs": {"colour": closed(name={"enum": WORDS})}},
    "a definition of itself": {"$ref": "#/$defs/node"}
    | {
        "$defs": {
            "node": closed(leaf={"type": "boolean"}, below={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}),
        }
    },
    "all of several": {
        "allOf": [
            closed(a={"type": "integer", "minimum": 0}),
            {"properties": {"a": {"maximum": 99}}, "required": ["a"]},
        ]
    },
    "letters of the world": closed(greeting={"enum": GREETINGS}),
}
PROMPT = [{"role": "user", "content": "Give me an example as JSON."}]


def asked(name, schema, number):
    """A request for some answers; half of them say that they are strict."""
    form = {"name": f"schema_{number}", "schema": schema, "strict": bool(number % 2)}
    return {
        "model": DEMO,
        "messages": [*PROMPT, {"role": "system", "content": f"The subject is {name}."}],
        "response_format": {"type": "json_schema", "json_schema": form},
        "n": EACH,
        "seed": 1000 * number,
        "temperature": 1,
        "max_tokens": TOKENS,
    }


def wrong(schema, text):
    """What is wrong with an answer."""
    try:
        return [error.message for error in Draft202012Validator(schema).iter_errors(json.loads(text))]
    except ValueError as error:
        return [str(error)]


@pytest.mark.timeout(900)
async def test_two_hundred_answers_to_twenty_schemas_keep_them_where_they_end_by_themselves(server):
    assert len(SCHEMAS) * EACH == 200
    turns = asyncio.Semaphore(3)  # thirty generations of different schemas at once fill the batch
    async with httpx.AsyncClient(base_url=server.url, timeout=600, trust_env=False) as client:

        async def choices(name, schema, number):
            async with turns:
                response = await client.post("/v1/chat/completions", json=asked(name, schema, number))
            assert response.status_code == 200, (name, response.text)
            return response.json()["choices"]

        numbered = [(name, schema, number) for number, (name, schema) in enumerate(SCHEMAS.items())]
        answers = await asyncio.gather(*(choices(*one) for one in numbered))
    ends, failures = Counter(), []
    for (name, schema, _), made in zip(numbered, answers, strict=True):
        assert len(made) == EACH
        for choice in made:
            ends[choice["finish_reason"]] += 1
            text = choice["message"]["content"]
            if choice["finish_reason"] == "stop" and (problems := wrong(schema, text)):
                failures.append((name, text, problems))
    assert failures == []
    assert set(ends) <= {"stop", "length"}
    assert ends["stop"] >= 100, ends  # or nothing would have been shown


async def test_a_constraint_binds_its_own_request_alone(server):
    plain = {"model": DEMO, "prompt": "The capital of France is", "max_tokens": 16, "temperature": 0}
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as client:
        alone = (await client.post("/v1/completions", json=plain)).json()["choices"][0]["text"]
        constrained = client.post("/v1/chat/completions", json=asked("colours", SCHEMAS["a list of words"], 1))
        beside, others = await asyncio.gather(client.post("/v1/completions", json=plain), constrained)
    assert beside.json()["choices"][0]["text"].split(".")[0] == alone.split(".")[0]
    assert all(choice["message"]["content"].startswith("{") for choice in others.json()["choices"])


def test_a_constrained_stream_cuts_no_letter_and_says_what_the_whole_answer_says(server):
    body = asked("letters", SCHEMAS["letters of the world"], 3) | {"n": 1, "messages": PROMPT}
    for seed in range(6):
        whole = server.answer("/v1/chat/completions", body | {"seed": seed})["choices"][0]
        with server.http.stream("POST", "/v1/chat/completions", json=body | {"seed": seed, "stream": True}) as response:
            chunks = [event for event in events(response.iter_lines()) if event != "[DONE]"]
        pieces = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks]
        assert not any("\ufffd" in piece for piece in pieces)
        assert "".join(pieces) == whole["message"]["content"]
        if whole["finish_reason"] == "stop":
            assert wrong(SCHEMAS["letters of the world"], whole["message"]["content"]) == []


REFUSED = {
    "no schema at all": {"type": "nonsense"},
    "a schema from elsewhere": {"$ref": "https://example.com/schema.json"},
    "a pattern that is none": {"type": "string", "pattern": "(("},
    "never satisfied": closed(a={"type": "integer", "minimum": 5, "maximum": 1}),
    "too long": closed(a={"enum": [f"{number} {'x' * 100}" for number in range(2000)]}),
}
HARD = {
    "repeats of repeats": closed(a={"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}b$"}),
    "hundreds of lists": closed(
        **{f"p{number}": several({"type": "string", "pattern": "^(ab|cd){1,500}$"}, 0, 999) for number in range(300)}
    ),
    "a deep one": functools.reduce(lambda below, _: closed(a=below), range(45), TRUTH),
    "every order": closed([], **{f"property_{number}": {"type": "integer"} for number in range(500)}),
}


def refusal(schema):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    return {"model": DEMO, "messages": PROMPT, "response_format": form, "max_tokens": 8}


@pytest.mark.parametrize("schema", REFUSED.values(), ids=REFUSED)
def test_a_schema_that_cannot_be_kept_is_refused_by_name(server, schema):
    response = server.post("/v1/chat/completions", refusal(schema))
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_request")
    assert error["param"].startswith("response_format")


@pytest.mark.parametrize("schema", HARD.values(), ids=HARD)
async def test_a_schema_that_is_hard_to_compile_holds_nobody_up(server, schema):
    async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE_S, trust_env=False) as client:
        asking = asyncio.create_task(client.post("/v1/chat/completions", json=refusal(schema)))
        other = asyncio.create_task(client.post("/infer", json={"text": "The sea", "max_new_tokens": 4}))
        while not asking.done():
            assert (await client.get("/health/live")).status_code == 200
            await asyncio.wait([asking], timeout=0.05)
        assert (await other).status_code == 200
    response = await asking
    assert response.status_code in {200, 400}, response.text
    if response.status_code == 400:
        assert response.json()["error"]["param"].startswith("response_format")
    await asyncio.to_thread(server.wait_idle)

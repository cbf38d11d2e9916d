"""The JSON edge: whatever bytes come, no answer is a 5xx, nothing is repeated, and the work is bounded."""

from __future__ import annotations

import json
import sys
from types import FrameType
from typing import Self

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from fakes import ScriptedEngine
from inferapi.api.json_bounds import MOST_FIELDS, MOST_VALUES
from inferapi.api.openai.strictness import OpenAiBody
from inferapi.api.schema import Body

JSON = {"Content-Type": "application/json"}
MIB = 1024**2
PATHS = [
    "/infer",
    "/chat",
    "/load_model",
    "/change_model",
    "/unload_model",
    "/change_inactivity_threshold",
    "/system_prompt",
    "/sessions/import",
    "/sessions/s1/fork",
    "/sessions/s1/rewind",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
]
FIELDS = [
    "text",
    "model",
    "model_name",
    "new_model_name",
    "messages",
    "prompt",
    "input",
    "stop",
    "n",
    "stream",
    "logit_bias",
    "tools",
    "role",
    "content",
    "type",
    "function",
    "name",
    "parameters",
    "turns",
    "format",
    "new_threshold",
    "session_id",
    "max_new_tokens",
    "temperature",
    "dry_run",
]
WORDS = ["gpt2", "nobody", "user", "assistant", "text", "function", "inferapi.session", "s1", "\ud800", "\x00", "../x"]

numbers = st.integers() | st.integers(-3, 3) | st.floats()
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.sampled_from(WORDS) | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=30,
)
objects = st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), anything, max_size=10)
bodies = (
    st.binary(max_size=100)
    | st.text(st.sampled_from('{}[]",:\\ue1d.-+Nan Inf'), max_size=100).map(str.encode)
    | (anything | objects).map(lambda value: json.dumps(value).encode())
)


@pytest.fixture
async def ready(stage) -> ScriptedEngine:
    return await stage.load()


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), body=bodies)
async def test_whatever_is_sent_the_answer_is_no_5xx(ready, client, path, body):
    answer = await client.post(path, content=body, headers=JSON)
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        told = answer.json()
        assert told.get("error", told)["code"]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(PATHS), field=st.sampled_from(FIELDS), shape=st.integers(0, 4))
async def test_no_refusal_repeats_what_was_sent(client, path, field, shape):
    secret = "s3cr3t-words"
    shapes = [
        secret + " /",
        [secret],
        {secret: secret},
        [[{"role": secret, "content": {secret: 1}}]],
        {field: [secret]},
    ]
    answer = await client.post(path, json={field: shapes[shape], secret + " ": secret})
    assert 400 <= answer.status_code < 500
    assert secret not in answer.text


class Work:
    """Counts the calls that Python makes within it, those of built-in functions included: the same on any machine."""

    def __init__(self) -> None:
        self.calls = 0

    def __enter__(self) -> Self:
        self._before = sys.getprofile()
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)

    def _count(self, frame: FrameType, event: str, arg: object) -> None:
        self.calls += event in {"call", "c_call"}


def keys(count: int) -> str:
    return ",".join(f'"k{number}":1' for number in range(count))


LARGE = {
    "unknown fields": "{" + keys(300_000) + "}",
    "unknown fields, as many as are counted": "{" + keys(MOST_VALUES - 1) + "}",
    "unknown fields within": '{"text":{' + keys(300_000) + "}}",
    "a list": "[" + "1," * 2_000_000 + "1]",
    "a list of stop strings": '{"text":"a","stop":[' + '"a",' * 900_000 + '"a"]}',
    "empty lists": "[" + "[]," * 1_000_000 + "[]]",
    "lists in lists": '{"text":' + "[" * 2_000_000,
    "turns that are none": '{"format":"inferapi.session","version":1,"turns":[' + "{}," * 1_000_000 + "{}]}",
    "messages that are none": '{"model":"gpt2","messages":[' + '{"":1},' * 500_000 + "{}]}",
    "texts without end": '{"text":"' + '\\"' * 1_500_000,
    "commas that are no JSON": "," * 3_000_000,
    "numbers": '{"text":' + "9" * 3_000_000 + "}",
}


@pytest.mark.parametrize("path", ["/infer", "/sessions/import", "/v1/chat/completions"])
@pytest.mark.parametrize("text", LARGE.values(), ids=LARGE)
async def test_the_work_for_a_large_body_is_bounded(stage, client_of, path, text):
    async with client_of(stage.app(max_body_bytes=4 * MIB)) as client:
        request = client.build_request("POST", path, content=text.encode(), headers=JSON)
        with Work() as work:
            answer = await client.send(request)
    assert answer.status_code in {400, 422}, answer.text
    assert len(answer.content) < 4096
    assert work.calls < 10 * MOST_VALUES


def test_the_measure_of_work_sees_what_is_done_for_each_value():
    values = list(range(100_000))
    with Work() as work:
        assert not any(isinstance(value, str) for value in values)
    assert work.calls > 100_000


async def test_a_long_text_full_of_commas_is_a_text(stage, client_of):
    await stage.load()
    text = ", ".join(["one"] * 150_000)
    async with client_of(stage.app(max_body_bytes=MIB)) as client:
        answer: httpx.Response = await client.post("/infer", json={"text": text})
    told = answer.json()
    assert (answer.status_code, told["code"]) == (422, "context_length_exceeded")  # it got as far as the model
    assert told["prompt_tokens"] == 150_000


NUL = ['{"text": "a\\u0000b"}', '{"text": "a", "a\\u0000": 1}', '{"text": "a", "stop": ["b", "\\u0000"]}']


@pytest.mark.parametrize("path", [path for path in PATHS if not path.startswith("/sessions/")])
@pytest.mark.parametrize("text", NUL)
async def test_a_text_with_the_character_that_ends_texts_elsewhere_is_refused(ready, client, path, text):
    answer = await client.post(path, content=text, headers=JSON)
    told = answer.json()
    assert (answer.status_code, told.get("error", told)["code"]) in {(422, "invalid_request"), (400, "invalid_request")}
    assert "U+0000" in answer.text
    assert ready.requests == []


async def test_what_only_looks_like_it_is_a_text(ready, client):
    answer = await client.post("/infer", content=rb'{"text": "a\\\u0000b"}', headers=JSON)
    assert answer.json()["code"] == "invalid_request"  # an escaped backslash, and then the character
    answer = await client.post("/infer", content=rb'{"text": "a\\u0000b"}', headers=JSON)
    assert (answer.status_code, answer.json()["input"]) == (200, r"a\u0000b")


def kinds(root: type[BaseModel]) -> list[type[BaseModel]]:
    """Every body that derives from it."""
    return [kind for child in root.__subclasses__() for kind in (child, *kinds(child))]


MANY = MOST_VALUES - 100
FULL = {
    "numbers": [1] * MANY,
    "objects": [{}] * MANY,
    "lists": [[]] * MANY,
    "texts": ["x"] * MANY,
    "fields": {f"k{number}": 1 for number in range(MOST_FIELDS)},
    "objects of fields": [{f"k{number}": 1 for number in range(MOST_FIELDS)}] * 30,
}


@pytest.mark.parametrize("kind", [*kinds(Body), *kinds(OpenAiBody)])
@pytest.mark.parametrize("value", FULL.values(), ids=FULL)
def test_no_field_of_any_body_is_refused_for_each_of_its_values(kind, value):
    found = {}
    for name, field in kind.model_fields.items():
        try:
            kind.model_validate({field.alias or name: value})
        except ValidationError as error:
            found[name] = error.error_count()
    assert {name: count for name, count in found.items() if count > MOST_FIELDS + 50} == {}


def test_the_bodies_that_are_looked_at_are_all_of_them():
    assert {"InferBody", "SessionExport", "ChatCompletionBody", "ResponseBody"} <= {
        kind.__name__ for root in (Body, OpenAiBody) for kind in kinds(root)
    }

"""``POST /v1/embeddings``: vectors in order, as numbers or packed."""

from __future__ import annotations

import base64
import struct

import pytest

from fakes import settle, text_vector
from inferapi.domain.errors import OutOfMemory
from metrics_page import MetricsPage

PATH = "/v1/embeddings"
TEXTS = ["a b", "c", "d e f"]


@pytest.fixture(autouse=True)
async def loaded(stage):
    stage.launcher.facts = {"embeds": True}
    await stage.load()


async def test_vectors_come_in_order_with_their_tokens(client, stage):
    answer = await client.post(PATH, json={"model": "gpt2", "input": TEXTS})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.json() == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": list(text_vector(text))}
            for index, text in enumerate(TEXTS)
        ],
        "model": "gpt2",
        "usage": {"prompt_tokens": 6, "total_tokens": 6},
    }
    (request,) = stage.engine.embedded
    assert request.texts == tuple(TEXTS)


async def test_one_text_need_not_be_a_list(client):
    body = (await client.post(PATH, json={"model": "gpt2", "input": "a b"})).json()
    assert [entry["embedding"] for entry in body["data"]] == [list(text_vector("a b"))]


async def test_packed_they_are_little_endian_float32(client):
    body = (await client.post(PATH, json={"model": "gpt2", "input": TEXTS, "encoding_format": "base64"})).json()
    packed = [base64.b64decode(entry["embedding"], validate=True) for entry in body["data"]]
    assert [struct.unpack("<4f", data) for data in packed] == [text_vector(text) for text in TEXTS]


async def test_as_many_texts_as_are_allowed_are_all_told(stage, client_of):
    texts = [str(number) for number in range(2048)]
    async with client_of(stage.app(max_body_bytes=100_000)) as client:
        body = (await client.post(PATH, json={"model": "gpt2", "input": texts})).json()
    assert [entry["index"] for entry in body["data"]] == list(range(2048))
    assert body["data"][-1]["embedding"] == list(text_vector("2047"))


async def test_the_dimensions_may_be_said_if_they_are_the_models(client):
    right = await client.post(PATH, json={"model": "gpt2", "input": "a", "dimensions": 4})
    wrong = await client.post(PATH, json={"model": "gpt2", "input": "a", "dimensions": 3})
    assert (right.status_code, wrong.status_code) == (200, 400)
    assert wrong.json()["error"]["param"] == "dimensions"
    assert wrong.json()["error"]["message"] == "dimensions: the vectors of this model have 4"


async def test_dimensions_that_the_model_has_not_are_refused_before_anything_is_computed(client, stage):
    wrong = await client.post(PATH, json={"model": "gpt2", "input": TEXTS, "dimensions": 3})
    page = MetricsPage((await client.get("/metrics")).text)
    assert (wrong.status_code, stage.engine.embedded) == (400, [])
    assert page.counted("requests_rejected_total", "reason") == {"invalid_request": 1.0}
    assert page.counted("requests_finished_total", "finish_reason") == {}


async def test_a_model_that_cannot_embed_says_so_whatever_the_dimensions(make_stage, client_of):
    stage = await make_stage()
    stage.launcher.facts = {"embeds": False, "embedding_dimensions": None}
    async with client_of(stage.app()) as client:
        answer = await client.post(PATH, json={"model": "gpt2", "input": "a", "dimensions": 3})
    assert answer.json()["error"]["code"] == "embeddings_refused"


async def test_a_model_that_cannot_embed_says_so(make_stage, client_of):
    stage = await make_stage()
    stage.launcher.facts["embeds"] = False
    async with client_of(stage.app()) as client:
        answer = await client.post(PATH, json={"model": "gpt2", "input": "a"})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "embeddings_refused", "model")


async def test_a_text_beyond_the_window_is_refused_with_counts(stage, client_of):
    async with client_of(stage.app(max_body_bytes=10_000)) as client:
        answer = await client.post(PATH, json={"model": "gpt2", "input": ["a", "w " * 1025]})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "1025" in answer.json()["error"]["message"]


async def test_a_request_that_found_no_memory_may_be_tried_again(client, stage):
    stage.engine.fail_with = OutOfMemory()
    answer = await client.post(PATH, json={"model": "gpt2", "input": "a"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "insufficient_memory")
    assert answer.headers["retry-after"] == "5"


async def test_the_work_ends_with_its_client(stage, call):
    stage.engine.gate.hold()
    request = call(stage.app(), PATH, {"model": "gpt2", "input": "a"})
    await settle()
    assert [line.in_flight for line in stage.lifecycle.status()] == [1]
    await request.leave()
    assert (request.task.done(), stage.engine.cancelled) == (True, 1)
    assert [line.in_flight for line in stage.lifecycle.status()] == [0]

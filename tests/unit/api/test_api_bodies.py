"""Bodies that nobody should send: refused with the right status, never a 500, never repeated."""

from __future__ import annotations

import pytest

JSON = {"Content-Type": "application/json"}
SECRET = "s3cr3t-words-of-the-client"


@pytest.fixture(autouse=True)
async def loaded(stage):
    await stage.load()


NO_JSON = [
    b"{",
    b"{'text': 'Hi'}",
    b'{"text": "Hi",}',
    b'{"text": "Hi"} x',
    b'{"text": "\xff\xfe"}',
    b'{"text": "a\nb"}',
    b"\x00",
    b"[" * 10_000,
    b'{"text": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    b'{"text": "Hi", "seed": ' + b"9" * 5_000 + b"}",
]


async def test_what_is_no_json_in_utf8_is_refused(stage, client_of):
    told = {}
    async with client_of(stage.app(max_body_bytes=20_000)) as client:
        for body in NO_JSON:
            problem = (await client.post("/infer", content=body, headers=JSON)).json()
            told[body] = (problem["status"], problem["code"], problem["detail"])
    assert told == dict.fromkeys(NO_JSON, (400, "invalid_json", "The body is not valid JSON in UTF-8."))


async def test_no_body_at_all_is_refused(client):
    answer = await client.post("/infer", content=b"", headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize(
    "body",
    ['{"text": "Hi"}'.encode("utf-16"), '{"text": "Hi"}'.encode("utf-32-le"), b'{"text": "\xed\xa0\x80"}'],
    ids=["utf-16", "utf-32", "a surrogate in utf-8"],
)
async def test_json_in_another_encoding_than_utf8_is_refused(client, body):
    problem = (await client.post("/infer", content=body, headers=JSON)).json()
    assert (problem.get("status"), problem.get("code")) == (400, "invalid_json")


async def test_a_number_that_is_none_is_refused(client, stage):
    numbers, fields = ["NaN", "Infinity", "-Infinity", "1e999"], ["temperature", "top_p", "max_new_tokens", "seed"]
    bodies = [f'{{"text": "Hi", "{field}": {number}}}' for field in fields for number in numbers]
    told = {body: (await client.post("/infer", content=body, headers=JSON)).json()["code"] for body in bodies}
    assert told == dict.fromkeys(bodies, "invalid_request")
    assert stage.engine.requests == []


async def test_a_lone_surrogate_is_refused(client, stage):
    bodies = [
        ("/infer", r'{"text": "\ud800"}'),
        ("/infer", r'{"text": "Hi", "stop": ["\udfff"]}'),
        ("/infer", r'{"text": "Hi", "session_id": "\ud800"}'),
        ("/infer", r'{"text": "Hi", "\ud800": 1}'),
        ("/chat", r'{"text": "a\ud800b"}'),
        ("/system_prompt", r'{"prompt": "\ud800"}'),
        ("/load_model", r'{"model_name": "\ud800"}'),
    ]
    told = [(await client.post(path, content=body, headers=JSON)).json()["code"] for path, body in bodies]
    assert told == ["invalid_request"] * len(bodies)
    assert stage.engine.requests == []


async def test_a_pair_of_surrogates_is_a_character(client):
    answer = await client.post("/infer", content=r'{"text": "\ud83d\ude42"}', headers=JSON)
    assert (answer.status_code, answer.json()["input"]) == (200, "🙂")


async def test_true_is_not_one(client, stage):
    fields = ["max_new_tokens", "temperature", "top_k", "seed", "min_new_tokens"]
    bodies = [{"text": "Hi", field: value} for field in fields for value in (True, False)]
    told = [(await client.post("/infer", json=body)).json()["code"] for body in bodies]
    assert told == ["invalid_request"] * len(bodies)
    assert stage.engine.requests == []


async def test_a_refusal_never_repeats_what_was_sent(client):
    bodies = [
        ("/infer", {"text": [SECRET]}),
        ("/infer", {"text": {SECRET: SECRET}}),
        ("/infer", {"text": "Hi", "stop": [SECRET * 20]}),
        ("/infer", {"text": "Hi", "temperature": SECRET}),
        ("/infer", {"text": "Hi", "session_id": SECRET + " "}),
        ("/infer", {"text": "Hi", SECRET: SECRET}),
        ("/infer", {"text": "Hi", "max_new_tokens": SECRET}),
        ("/chat", {"txet": SECRET}),
        ("/system_prompt", {"prompt": [SECRET]}),
        ("/load_model", {"model_name": "gpt2", "dtype": SECRET}),
        ("/load_model", {"model_name": f"/{SECRET}"}),
        ("/change_inactivity_threshold", {"new_threshold": SECRET}),
    ]
    answers = [await client.post(path, json=body) for path, body in bodies]
    assert [(answer.status_code, SECRET in answer.text) for answer in answers] == [(422, False)] * len(bodies)


async def test_a_refusal_says_which_field_is_wrong(client):
    answer = await client.post("/infer", json={"text": "Hi", "top_p": 2, "top_k": -1})
    assert answer.json()["detail"] == (
        "top_p: Input should be less than or equal to 1; top_k: Input should be greater than or equal to 0"
    )


async def test_a_body_that_is_no_object_is_refused(client):
    bodies = ["[]", '"Hi"', "5", "null", "true"]
    told = {body: (await client.post("/infer", content=body, headers=JSON)).json()["code"] for body in bodies}
    assert told == dict.fromkeys(bodies, "invalid_request")


async def test_a_body_that_is_no_json_by_its_own_word_is_refused(client, stage):
    types = ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx", ""]
    answers = [await client.post("/infer", content=b'{"text": "Hi"}', headers={"Content-Type": t}) for t in types]
    told = [(answer.status_code, answer.json()["code"]) for answer in answers]
    assert told == [(415, "unsupported_media_type")] * len(types)
    assert stage.engine.requests == []


async def test_json_may_be_called_json_in_any_case(client):
    types = ["application/json; charset=utf-8", "Application/JSON"]
    answers = [await client.post("/infer", content=b'{"text": "Hi"}', headers={"Content-Type": t}) for t in types]
    assert [answer.status_code for answer in answers] == [200, 200]


async def test_a_body_that_is_too_large_by_its_own_word_is_refused_unread(client, stage):
    answer = await client.post("/infer", json={"text": "x" * 4096})
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["limit_bytes"]) == (413, "body_too_large", 4096)
    assert answer.headers["connection"] == "close"
    assert stage.engine.requests == []


async def test_a_length_beyond_all_numbers_is_refused_as_any_that_is_too_large(client):
    answer = await client.post("/infer", content=b"{}", headers=JSON | {"Content-Length": "9" * 5000})
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


async def test_a_body_that_grows_too_large_undeclared_is_refused_the_same_way(client, stage):
    async def pieces():
        yield b'{"text": "'
        for _ in range(10):
            yield b"x" * 1000
        yield b'"}'

    answer = await client.post("/infer", content=pieces(), headers=JSON)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (413, "body_too_large")
    assert problem["limit_bytes"] == 4096
    assert stage.engine.requests == []


async def test_a_body_of_just_the_limit_is_read(client):
    body = b'{"text": "Hi"}'.ljust(4096)
    assert (await client.post("/infer", content=body, headers=JSON)).status_code == 200

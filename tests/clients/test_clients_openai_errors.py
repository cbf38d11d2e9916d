"""What the official client raises, what it asks again and what not, and what is left behind when it leaves."""

import json
import re
import resource

import openai
import pytest
from client_side import answered, base_url
from live_server import DEMO, PATIENCE_S, TINY, until, write_tiny_model

from stub_hub import StubHub

CHAT = "/v1/chat/completions"
HI = [{"role": "user", "content": "Hi"}]
ENDLESS = {"messages": HI, "max_tokens": 4000, "extra_body": {"ignore_eos": True}}
KEYS = {"user": "key-of-a-user-0123456789", "admin": "key-of-the-admin-0123456"}


def refused(call):
    """The error that a call ends with, and its code, parameter and type."""
    with pytest.raises(openai.APIStatusError) as raised:
        call()
    error = raised.value
    return type(error), error.code, error.param, error.type


@pytest.fixture
def point(request):
    """Makes clients of other servers; they are closed with the test."""

    def make(server, api_key="none", **options):
        client = openai.OpenAI(base_url=base_url(server), api_key=api_key, timeout=PATIENCE_S, **options)
        request.addfinalizer(client.close)
        return client

    return make


# What is raised


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": "5"}, "max_completion_tokens"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": "x" * 129}, "stop"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"logit_bias": {str(token): 1 for token in range(301)}}, "logit_bias"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"extra_body": {"no_such_parameter": 1}}, "no_such_parameter"),
        ({"web_search_options": {"search_context_size": "low"}}, "web_search_options"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_out_of_bounds_or_not_supported_is_a_bad_request_that_names_it(client, options, param):
    kind, code, named, group = refused(lambda: client.chat.completions.create(model=DEMO, messages=HI, **options))
    assert (kind, code, group) == (openai.BadRequestError, "invalid_request", "invalid_request_error")
    assert re.split(r"[.\[]", named)[0] == param


def test_what_is_no_text_is_a_bad_request_that_names_the_messages(client):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [{"role": "user", "content": [image]}]
    kind, _, param, _ = refused(lambda: client.chat.completions.create(model=DEMO, messages=messages))
    assert kind is openai.BadRequestError
    assert param.startswith("messages")


def test_tokens_for_text_are_a_bad_request_that_names_the_input(client):
    kind, _, param, _ = refused(lambda: client.embeddings.create(model=DEMO, input=[[1, 2, 3]]))
    assert kind is openai.BadRequestError
    assert param.startswith("input")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_beyond_the_context_window_is_a_bad_request_with_counts(client, stream):
    messages = [{"role": "user", "content": "word " * 9000}]
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=DEMO, messages=messages, stream=stream)
    assert raised.value.code == "context_length_exceeded"
    assert "8192" in raised.value.message


def test_a_model_outside_of_the_allowed_ones_is_denied(client):
    kind, code, *_ = refused(lambda: client.chat.completions.create(model="else/where", messages=HI))
    assert (kind, code) == (openai.PermissionDeniedError, "model_not_allowed")


def test_a_name_that_is_a_path_is_a_bad_request(client):
    kind, code, *_ = refused(lambda: client.chat.completions.create(model="../etc/passwd", messages=HI))
    assert (kind, code) == (openai.BadRequestError, "invalid_request")


def test_what_is_not_there_is_not_found(client):
    assert refused(lambda: client.models.retrieve("nobody/here"))[0] is openai.NotFoundError
    assert refused(lambda: client.get("/no/such/path", cast_to=object))[0] is openai.NotFoundError


def test_keys_are_asked_for_and_their_scopes_kept(fresh_server, point):
    scopes = {"user": ["infer"], "admin": ["admin"]}
    keys = [{"id": name, "key": key, "scopes": scopes[name]} for name, key in KEYS.items()]
    server = fresh_server(MODEL=TINY, API_KEYS=json.dumps(keys)).wait_ready()

    def ask(api_key):
        return point(server, api_key).chat.completions.create(model=TINY, messages=HI, max_tokens=1)

    assert ask(KEYS["user"]).choices
    kind, code, _, group = refused(lambda: ask("key-of-nobody-0123456789"))
    assert (kind, code, group) == (openai.AuthenticationError, "unauthenticated", "authentication_error")
    kind, code, _, group = refused(lambda: ask(KEYS["admin"]))
    assert (kind, code, group) == (openai.PermissionDeniedError, "insufficient_scope", "permission_error")
    assert refused(point(server).models.list)[0] is openai.AuthenticationError


def test_a_key_that_asks_too_often_is_told_so_and_when_to_come_again(fresh_server, point):
    keys = json.dumps([{"id": "user", "key": KEYS["user"]}])
    server = fresh_server(MODEL=TINY, API_KEYS=keys, KEY_REQUESTS_PER_MINUTE=1).wait_ready()
    client = point(server, KEYS["user"], max_retries=0)
    assert client.chat.completions.create(model=TINY, messages=HI, max_tokens=1).choices
    with pytest.raises(openai.RateLimitError) as raised:
        client.chat.completions.create(model=TINY, messages=HI, max_tokens=1)
    assert (raised.value.code, raised.value.type) == ("rate_limit_exceeded", "rate_limit_error")
    assert 1 <= int(raised.value.response.headers["retry-after"]) <= 60


# What is asked again


def test_a_full_queue_is_asked_again_as_often_as_the_client_likes(fresh_server, point):
    server = fresh_server(MODEL=TINY, MAX_BATCH=1, MAX_QUEUE=0, MAX_NEW_TOKENS=8000).wait_ready()
    client = point(server, max_retries=2)
    body = ENDLESS | {"model": TINY, "max_tokens": 8000, "stream": True}
    with client.chat.completions.create(**body) as running:
        assert all(next(running).object == "chat.completion.chunk" for _ in range(3))
        kind, code, _, group = refused(lambda: client.chat.completions.create(model=TINY, messages=HI, max_tokens=1))
        assert (kind, code, group) == (openai.InternalServerError, "queue_full", "server_error")
        until(lambda: answered(server, CHAT, 503) == 3)  # the line is written after the answer


def test_a_deadline_that_passed_and_a_body_too_large_are_not_asked_again(fresh_server, point):
    limits = {"REQUEST_TIMEOUT_S": 1, "MAX_BODY_BYTES": 4096, "MAX_NEW_TOKENS": 8000}
    server = fresh_server(MODEL=TINY, **limits).wait_ready()
    client = point(server, max_retries=2)
    late = refused(lambda: client.chat.completions.create(**ENDLESS | {"model": TINY, "max_tokens": 8000}))
    assert late[:2] == (openai.InternalServerError, "generation_timeout")
    until(lambda: answered(server, CHAT, 504) == 1)  # the line is written after the answer
    large = [{"role": "user", "content": "x" * 5000}]
    assert refused(lambda: client.chat.completions.create(model=TINY, messages=large))[1] == "body_too_large"
    until(lambda: answered(server, CHAT, 413) == 1)  # the line is written after the answer
    assert client.chat.completions.create(model=TINY, messages=HI, max_tokens=1).choices


@pytest.fixture
def hub(tmp_path):
    """A hub on loopback that has one model of some megabytes."""
    stub = StubHub()
    stub.add("somebody/large", write_tiny_model(tmp_path / "large"))
    yield stub
    stub.close()


def test_a_full_disk_is_not_asked_again_and_a_model_that_the_hub_has_not_is_not_found(hub, fresh_server, point):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))  # the server's files; the kernel writes no more
    try:
        server = fresh_server(MODEL="", environment={"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url}).wait_ready()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    client = point(server, max_retries=2)
    full = refused(lambda: client.chat.completions.create(model="somebody/large", messages=HI, max_tokens=1))
    assert full[:2] == (openai.InternalServerError, "insufficient_storage")
    until(lambda: answered(server, CHAT, 507) == 1)  # the line is written after the answer
    missing = refused(lambda: client.chat.completions.create(model="somebody/else", messages=HI, max_tokens=1))
    assert missing[:2] == (openai.NotFoundError, "model_not_found")


# In the middle


def test_a_worker_that_dies_in_the_middle_of_a_stream_is_an_error_and_the_next_request_works(fresh_server, point):
    server = fresh_server(MODEL=TINY, MAX_NEW_TOKENS=32000).wait_ready()
    client = point(server)
    body = ENDLESS | {"model": TINY, "max_tokens": 8000, "stream": True}
    with client.chat.completions.create(**body) as stream:
        next(iter(stream))
        server.kill_worker()
        with pytest.raises(openai.APIError) as raised:
            list(stream)
    assert raised.value.code == "model_crashed"
    assert client.chat.completions.create(model=TINY, messages=HI, max_tokens=1).choices


@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_a_stream_frees_its_slots(server, client, n):
    with client.chat.completions.create(model=DEMO, n=n, stream=True, **ENDLESS) as stream:
        assert all(next(stream).object == "chat.completion.chunk" for _ in range(3))
        until(lambda: server.model_line()["in_flight"])
    server.wait_idle()
    assert client.chat.completions.create(model=DEMO, messages=HI, max_tokens=2).choices


@pytest.mark.parametrize("path", ["chat", "completions", "responses"])
def test_a_client_that_waits_no_longer_frees_its_slot(server, client, path):
    impatient = client.with_options(timeout=2)
    items = {"type": "array", "items": {"type": "integer"}, "minItems": 500}
    numbers = {"type": "object", "properties": {"all": items}, "required": ["all"], "additionalProperties": False}
    long = {"format": {"type": "json_schema", "name": "numbers", "schema": numbers, "strict": True}}
    endless = {"model": DEMO, "extra_body": {"ignore_eos": True}}
    calls = {
        "chat": lambda: impatient.chat.completions.create(messages=HI, max_tokens=4000, **endless),
        "completions": lambda: impatient.completions.create(prompt="Hi", max_tokens=4000, **endless),
        "responses": lambda: impatient.responses.create(model=DEMO, input="Hi", text=long, max_output_tokens=4000),
    }
    with pytest.raises(openai.APITimeoutError):
        calls[path]()
    server.wait_idle()

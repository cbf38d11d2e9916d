"""The manual: every route of OpenAI's with its answers, errors, events and examples; every field described as it is."""

from __future__ import annotations

import json

import pytest

from inferapi.api.openai.chat_schema import ChatCompletionBody
from inferapi.api.openai.embeddings import EmbeddingsBody
from inferapi.api.openai.replies import ChatCompletion, EmbeddingsReply, ErrorReply, TextCompletion
from inferapi.api.openai.strictness import accepted
from inferapi.api.openai.text_schema import TextBody

BODIES = {
    "/v1/chat/completions": ChatCompletionBody,
    "/v1/completions": TextBody,
    "/v1/embeddings": EmbeddingsBody,
}
STREAMING = ("/infer", "/chat", "/v1/chat/completions", "/v1/completions", "/v1/responses")


@pytest.fixture
def manual(stage):
    return stage.app().openapi()


def operations(manual):
    return {
        (method.upper(), path): operation
        for path, methods in manual["paths"].items()
        for method, operation in methods.items()
    }


def resolved(manual, schema):
    while "$ref" in schema:
        schema = manual["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return schema


def test_every_route_of_openai_is_there(manual):
    routes = {route for route in operations(manual) if route[1].startswith("/v1/")}
    assert routes >= {
        ("GET", "/v1/models"),
        ("GET", "/v1/models/{model}"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/responses"),
        ("GET", "/v1/responses/{response_id}"),
        ("DELETE", "/v1/responses/{response_id}"),
    }


def test_every_route_says_what_its_errors_look_like(manual):
    for (_, path), operation in operations(manual).items():
        responses = operation["responses"]
        assert "HTTPValidationError" not in json.dumps(operation)
        if path.startswith("/v1/"):
            error = resolved(manual, responses["400"]["content"]["application/json"]["schema"])
            assert set(resolved(manual, error["properties"]["error"])["properties"]) == {
                "message",
                "type",
                "param",
                "code",
            }
            assert {"401", "403", "404", "503"} <= set(responses)
        else:
            assert "application/problem+json" in responses["default"]["content"]


@pytest.mark.parametrize("path", STREAMING)
def test_a_route_that_streams_says_what_events_look_like(manual, path):
    content = manual["paths"][path]["post"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "text/event-stream"}
    assert "data: {" in content["text/event-stream"]["example"]


@pytest.mark.parametrize(("path", "body"), list(BODIES.items()))
def test_the_examples_are_bodies_that_are_taken(manual, path, body):
    examples = manual["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert len(examples) >= 2
    for example in examples.values():
        assert accepted(body.model_validate(example["value"]), lenient=False) == ()


@pytest.mark.parametrize("path", list(BODIES))
def test_a_body_says_that_it_takes_no_other_fields_and_names_those_that_do_nothing(manual, path):
    reference = manual["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = resolved(manual, reference)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["user"]["description"].startswith("Does nothing here: ")
    assert schema["required"][0] == "model"


def test_what_may_be_said_in_two_ways_is_described_in_both(manual):
    chat = resolved(manual, {"$ref": "#/components/schemas/ChatCompletionBody"})
    message = resolved(manual, {"$ref": "#/components/schemas/ChatMessage"})
    assert "string" in json.dumps(message["properties"]["content"])
    assert "TextPart" in json.dumps(message["properties"]["content"])
    stop = json.dumps(chat["properties"]["stop"])
    assert ('"maxItems": 16' in stop, '"maxLength": 128' in stop) == (True, True)
    bias = json.dumps(chat["properties"]["logit_bias"])
    assert ('"maxProperties": 300' in bias, '"maximum": 100.0' in bias) == (True, True)
    assert '"required"' in json.dumps(chat["properties"]["tool_choice"])


@pytest.mark.parametrize(
    ("path", "asked", "described"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}, ChatCompletion),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "Hi"}], "n": 2, "logprobs": True, "top_logprobs": 2},
            ChatCompletion,
        ),
        ("/v1/completions", {"prompt": "Hi", "logprobs": 2}, TextCompletion),
        ("/v1/completions", {"prompt": ["Hi", "you"]}, TextCompletion),
        ("/v1/embeddings", {"input": ["Hi", "you"]}, EmbeddingsReply),
        ("/v1/embeddings", {"input": "Hi", "encoding_format": "base64"}, EmbeddingsReply),
        ("/v1/chat/completions", {"messages": []}, ErrorReply),
    ],
)
async def test_what_is_sent_is_what_the_manual_says(client, stage, path, asked, described):
    stage.launcher.facts = {"embeds": True}
    body = (await client.post(path, json={"model": "gpt2"} | asked)).json()
    assert described.model_validate(body).model_dump(exclude_unset=True) == body


@pytest.mark.parametrize("name", ["ChatCompletion", "TextCompletion", "EmbeddingsReply", "ModelsReply", "ErrorReply"])
def test_names_of_schemas_are_plain(manual, name):
    assert name in manual["components"]["schemas"]
    assert not [one for one in manual["components"]["schemas"] if one.startswith("inferapi__api__openai__chat")]

"""LiteLLM: completion, streams, tools, structured outputs, embeddings and responses, pointed at this server."""

import json
from typing import Literal

import litellm
import pytest
from client_side import HERMES, base_url
from live_server import DEMO, PATIENCE_S
from pydantic import BaseModel, ConfigDict

CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": PARAMETERS}}


class Town(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Literal["Paris", "Rome", "Oslo"]
    is_capital: bool


def model(name):
    """How LiteLLM calls a model of an OpenAI-compatible server."""
    return f"openai/{name}"


@pytest.fixture
def where(server):
    """Where it goes, and how often and long it tries."""
    return {"api_base": base_url(server), "api_key": "none", "timeout": PATIENCE_S, "max_retries": 0}


@pytest.fixture
def greedy(where):
    return {"model": model(DEMO), "messages": CAPITAL, "temperature": 0, "max_tokens": 32, **where}


def test_it_answers_and_counts(greedy):
    answer = litellm.completion(**greedy)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


def test_it_streams_what_it_says_whole_and_counts_where_it_is_asked_to(greedy):
    whole = litellm.completion(**greedy)
    chunks = list(litellm.completion(stream=True, stream_options={"include_usage": True}, **greedy))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == (
        whole.choices[0].message.content
    )
    rebuilt = litellm.stream_chunk_builder(chunks, messages=CAPITAL)
    assert rebuilt.choices[0].message.content == whole.choices[0].message.content
    assert rebuilt.usage.completion_tokens == whole.usage.completion_tokens
    assert rebuilt.usage.prompt_tokens == whole.usage.prompt_tokens


async def test_it_works_for_coroutines(greedy):
    whole = await litellm.acompletion(**greedy)
    stream = await litellm.acompletion(stream=True, **greedy)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content


def test_every_parameter_that_it_maps_is_taken(greedy):
    more = {"top_p": 0.9, "n": 2, "stop": ["never said"], "presence_penalty": 0.5, "frequency_penalty": 0.5}
    more |= {"seed": 3, "logit_bias": {"5": -1}, "logprobs": True, "top_logprobs": 2}
    answer = litellm.completion(**greedy | more | {"temperature": 1})
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2


def test_a_tool_is_called_and_its_answer_taken(where):
    question = {"role": "user", "content": "What is the weather in Rome?"}
    asked = {"model": model(HERMES), "tools": [WEATHER], "temperature": 0, "max_tokens": 200, **where}
    must = {"tool_choice": "required", "parallel_tool_calls": False}
    made = litellm.completion(messages=[question], **asked, **must)
    message = made.choices[0].message
    (call,) = message.tool_calls
    assert (made.choices[0].finish_reason, call.function.name) == ("tool_calls", "get_weather")
    assert json.loads(call.function.arguments)["city"] in {"Paris", "Rome", "Oslo"}
    told = {"role": "tool", "tool_call_id": call.id, "content": "It is 31 degrees."}
    answer = litellm.completion(messages=[question, message, told], **asked)
    assert answer.usage.prompt_tokens > made.usage.prompt_tokens
    chunks = list(litellm.completion(messages=[question], stream=True, **asked, **must))
    rebuilt = litellm.stream_chunk_builder(chunks).choices[0].message
    assert rebuilt.tool_calls[0].function.arguments == call.function.arguments


def test_an_answer_is_an_object_of_a_class(greedy):
    asked = greedy | {"max_tokens": 200, "messages": [{"role": "user", "content": "Describe Rome as JSON."}]}
    answer = litellm.completion(response_format=Town, **asked)
    assert Town.model_validate_json(answer.choices[0].message.content)


def test_a_text_is_continued(where):
    asked = {"model": f"text-completion-openai/{DEMO}", "prompt": "The capital of France is", "max_tokens": 5}
    answer = litellm.text_completion(temperature=0, **asked, **where)
    assert answer.choices[0].text.startswith(" Paris")


def test_texts_become_vectors(where):
    answer = litellm.embedding(model=model(DEMO), input=["The sea", "A cat"], **where)
    assert [len(entry["embedding"]) for entry in answer.data] == [576, 576]
    assert answer.usage.prompt_tokens > 0


def test_a_response_is_made(where):
    answer = litellm.responses(model=model(DEMO), input="What is the capital of France?", temperature=0, **where)
    assert "Paris" in "".join(part.text for item in answer.output for part in item.content)


def test_errors_are_its_own_classes_of_the_same_meaning(greedy):
    long = [{"role": "user", "content": "word " * 9000}]
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**greedy | {"messages": long})
    with pytest.raises(litellm.APIError) as raised:
        litellm.completion(**greedy | {"model": model("else/where")})
    assert raised.value.status_code == 403

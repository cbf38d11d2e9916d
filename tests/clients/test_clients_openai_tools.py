"""The official client's tools and structured outputs. The model is tiny: what it must say, it is made to say."""

import json
from typing import Literal

import openai
import pytest
from client_side import HERMES
from live_server import DEMO
from pydantic import BaseModel, ConfigDict, Field

CITIES = ["Paris", "Rome", "Oslo"]
ASK = [{"role": "user", "content": "What is the weather in Rome?"}]


def function(name, *, strict=True, **properties):
    """A tool whose arguments are one of some words each."""
    parameters = {
        "type": "object",
        "properties": {key: {"type": "string", "enum": words} for key, words in properties.items()},
        "required": list(properties),
        "additionalProperties": False,
    }
    about = {"name": name, "description": f"Tells what {name} says.", "parameters": parameters, "strict": strict}
    return {"type": "function", "function": about}


WEATHER = function("get_weather", city=CITIES, unit=["celsius", "fahrenheit"])
LOOSE = function("get_weather", strict=False, city=CITIES, unit=["celsius", "fahrenheit"])
TIME = function("get_time", zone=["UTC", "CET"])
MUST = {"messages": ASK, "tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}
GREEDY = {"model": HERMES, "temperature": 0, "max_tokens": 200}


def assert_calls_weather(call):
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert call.id
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"city", "unit"}
    assert arguments["city"] in CITIES
    assert arguments["unit"] in {"celsius", "fahrenheit"}


def test_a_tool_that_is_required_is_called_with_arguments_by_its_schema(client):
    answer = client.chat.completions.create(**MUST, **GREEDY)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert not choice.message.content
    (call,) = choice.message.tool_calls
    assert_calls_weather(call)
    assert answer.usage.completion_tokens > 5


def test_a_tool_that_is_named_is_called_and_no_other(client):
    named = {"type": "function", "function": {"name": "get_time"}}
    asked = MUST | GREEDY | {"tools": [WEATHER, TIME], "tool_choice": named}
    (choice,) = client.chat.completions.create(**asked).choices
    assert {call.function.name for call in choice.message.tool_calls} == {"get_time"}
    assert json.loads(choice.message.tool_calls[0].function.arguments)["zone"] in {"UTC", "CET"}
    assert choice.finish_reason in {"tool_calls", "stop"}  # OpenAI says stop where one was named


def test_calls_that_must_not_be_parallel_are_one_and_those_of_several_choices_have_ids_of_their_own(client):
    asked = MUST | {"tools": [WEATHER, TIME]}
    sampled = {"model": HERMES, "temperature": 1, "seed": 1, "max_tokens": 200, "n": 4}
    choices = client.chat.completions.create(**asked, **sampled).choices
    calls = [choice.message.tool_calls for choice in choices if choice.finish_reason != "length"]
    assert calls
    assert [len(made) for made in calls] == [1] * len(calls)
    assert len({made[0].id for made in calls}) == len(calls)


def test_a_stream_brings_a_call_in_pieces_that_make_up_the_whole(client):
    asked = MUST | GREEDY
    (whole,) = client.chat.completions.create(**asked).choices[0].message.tool_calls
    chunks = list(client.chat.completions.create(stream=True, **asked))
    pieces = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or [] if call.index == 0]
    first, *others = pieces
    assert (first.type, first.function.name) == ("function", "get_weather")
    assert first.id
    assert all(piece.id is None and piece.function.name is None for piece in others)
    assert len(others) > 1  # it comes while it is made
    assert "".join(piece.function.arguments or "" for piece in pieces) == whole.function.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert not any(chunk.choices[0].delta.content for chunk in chunks)


def test_the_clients_own_accumulation_of_a_stream_parses_the_call(client):
    asked = MUST | GREEDY
    with client.chat.completions.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        message = stream.get_final_completion().choices[0].message
    assert {"chunk", "tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    assert_calls_weather(message.tool_calls[0])
    assert message.tool_calls[0].function.parsed_arguments["city"] in CITIES


def test_without_a_choice_the_model_may_speak_and_with_none_it_must(client):
    for choice, allowed in (("none", {"stop", "length"}), ("auto", {"stop", "length", "tool_calls"})):
        asked = {"messages": ASK, "tools": [LOOSE], "tool_choice": choice, **GREEDY}
        (answer,) = client.chat.completions.create(**asked).choices
        assert answer.finish_reason in allowed
        assert answer.message.tool_calls or answer.finish_reason != "tool_calls"
        assert choice == "auto" or not answer.message.tool_calls
        assert answer.message.content or answer.message.tool_calls


def test_the_answer_of_a_tool_is_part_of_the_conversation(client):
    asked = MUST | GREEDY
    message = client.chat.completions.create(**asked).choices[0].message
    (call,) = message.tool_calls
    told = {"role": "tool", "tool_call_id": call.id, "content": "It is 31 degrees."}
    answer = client.chat.completions.create(messages=[*ASK, message, told], tools=[LOOSE], **GREEDY)
    before = client.chat.completions.create(messages=ASK, tools=[LOOSE], **GREEDY | {"max_tokens": 1})
    assert answer.usage.prompt_tokens > before.usage.prompt_tokens + 20
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls


def test_a_template_that_knows_no_tools_says_so(client):
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(messages=ASK, tools=[LOOSE], **GREEDY | {"model": DEMO})
    assert raised.value.param == "tools"
    assert "tools" in raised.value.message


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "unknown"}}}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"tools": [function("spaces are not a name", strict=False)]}, "tools"),
    ],
    ids=["no tools", "unknown name", "no function", "bad name"],
)
def test_tools_that_make_no_sense_are_a_bad_request(client, options, param):
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(messages=ASK, **options, **GREEDY)
    assert raised.value.param.startswith(param)


class GetWeather(BaseModel):
    """The weather in a city."""

    model_config = ConfigDict(extra="forbid")

    city: Literal["Paris", "Rome", "Oslo"]


def test_tools_of_classes_are_strict_and_parsed_where_the_model_chooses(client):
    tools = [openai.pydantic_function_tool(GetWeather)]
    asked = {"messages": ASK, "tools": tools, **GREEDY, "temperature": 1, "n": 8, "seed": 5}
    # After a sentence it is enough: the client raises for an answer that reaches the token limit.
    answer = client.chat.completions.parse(**asked | {"max_tokens": 500, "stop": [".", "!", "?", ":\n"]})
    for choice in answer.choices:
        assert choice.message.content or choice.message.tool_calls
        if choice.finish_reason == "tool_calls":
            assert all(isinstance(call.function.parsed_arguments, GetWeather) for call in choice.message.tool_calls)


def test_beside_tools_an_answer_is_of_the_class_that_was_asked_for_or_a_call(client):
    tools = [openai.pydantic_function_tool(GetWeather)]
    (choice,) = client.chat.completions.parse(messages=ASK, tools=tools, response_format=Town, **GREEDY).choices
    if choice.message.tool_calls:
        assert all(isinstance(call.function.parsed_arguments, GetWeather) for call in choice.message.tool_calls)
    else:
        assert isinstance(choice.message.parsed, Town)


# Structured output


class Town(BaseModel):
    """What is to be found out."""

    model_config = ConfigDict(extra="forbid")

    name: Literal["Paris", "Rome", "Oslo"]
    is_capital: bool
    inhabitants_millions: int = Field(ge=0, le=50)
    rivers: list[Literal["Seine", "Tiber", "Akerselva"]] = Field(max_length=3)


TELL = [{"role": "user", "content": "Describe the city of Rome as JSON."}]


def test_an_answer_is_parsed_into_a_class_of_the_clients(client):
    asked = {"model": DEMO, "messages": TELL, "response_format": Town, "temperature": 0, "max_tokens": 300}
    parsed = client.chat.completions.parse(**asked)
    town = parsed.choices[0].message.parsed
    assert isinstance(town, Town)
    assert town == Town.model_validate_json(parsed.choices[0].message.content)
    with client.chat.completions.stream(**asked) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == town


def test_an_object_is_an_object(client):
    asked = {"model": DEMO, "messages": TELL, "temperature": 0, "max_tokens": 200}
    (choice,) = client.chat.completions.create(response_format={"type": "json_object"}, **asked).choices
    assert choice.message.content.startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)


@pytest.mark.parametrize(
    "schema",
    [{"type": "no such type"}, {"type": "string", "pattern": "("}, {"$ref": "https://example.com/schema.json"}],
    ids=["type", "pattern", "remote"],
)
def test_a_schema_that_cannot_be_kept_is_a_bad_request_that_names_it(client, schema):
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model=DEMO, messages=TELL, response_format=response_format)
    assert raised.value.param.startswith("response_format")

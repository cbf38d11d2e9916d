"""The official client's responses: stateful, branching, stored or not, streamed as typed events, with tools."""

import json
from typing import Literal

import openai
import pytest
from client_side import HERMES
from live_server import DEMO
from pydantic import BaseModel, ConfigDict

RULES = "You are a helpful assistant."
GREEDY = {"model": DEMO, "temperature": 0, "instructions": RULES, "max_output_tokens": 48}
BOB = "Remember this: my name is Bob."
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {"type": "function", "name": "get_weather", "parameters": PARAMETERS, "strict": False}


def gone(call):
    """Whether a call ends with a 404, and what it says."""
    with pytest.raises(openai.NotFoundError) as raised:
        call()
    return raised.value.code, raised.value.message


def test_a_response_is_whole_and_can_be_had_again(client):
    made = client.responses.create(input="What is the capital of France?", metadata={"trace": "7"}, **GREEDY)
    assert made.id.startswith("resp_")
    assert (made.object, made.status, made.model, made.error) == ("response", "completed", DEMO, None)
    assert (made.metadata, made.instructions, made.temperature) == ({"trace": "7"}, RULES, 0)
    (item,) = made.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
    assert "Paris" in made.output_text
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    assert client.responses.retrieve(made.id).to_dict() == made.to_dict()
    (asked,) = client.responses.input_items.list(made.id).data
    assert (asked.role, asked.content[0].type, asked.content[0].text) == (
        "user",
        "input_text",
        "What is the capital of France?",
    )


def test_a_response_goes_on_from_the_one_before_and_both_ways_at_once(client):
    first = client.responses.create(input=BOB, **GREEDY)
    name = client.responses.create(input="What is my name?", previous_response_id=first.id, **GREEDY)
    other = client.responses.create(input="Say hello.", previous_response_id=first.id, **GREEDY)
    stranger = client.responses.create(input="What is my name?", **GREEDY)
    assert name.previous_response_id == other.previous_response_id == first.id
    assert "Bob" not in stranger.output_text
    history = [
        {"role": "system", "content": RULES},
        {"role": "user", "content": BOB},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "What is my name?"},
    ]
    # What a client would send that keeps the history itself has as many tokens.
    same = client.chat.completions.create(model=DEMO, messages=history, temperature=0, max_tokens=1)
    assert name.usage.input_tokens == same.usage.prompt_tokens
    assert client.responses.retrieve(first.id).output_text == first.output_text
    third = client.responses.create(input="And again?", previous_response_id=name.id, **GREEDY)
    assert third.usage.input_tokens > name.usage.total_tokens


def test_messages_are_input_too(client):
    messages = [
        {"role": "developer", "content": RULES},
        {"role": "user", "content": [{"type": "input_text", "text": BOB}]},
        {"role": "assistant", "content": "I will."},
        {"type": "message", "role": "user", "content": "What is my name?"},
    ]
    asked = GREEDY | {"instructions": None}
    made = client.responses.create(input=messages, **asked)
    plain = [
        {"role": "system", "content": RULES},
        {"role": "user", "content": BOB},
        {"role": "assistant", "content": "I will."},
        {"role": "user", "content": "What is my name?"},
    ]
    same = client.chat.completions.create(model=DEMO, messages=plain, temperature=0, max_tokens=1)
    assert made.usage.input_tokens == same.usage.prompt_tokens
    assert made.output_text


def test_what_was_deleted_never_was_or_is_not_stored_is_the_same_to_everybody(client):
    kept = client.responses.create(input="Hi", **GREEDY)
    unkept = client.responses.create(input="Hi", store=False, **GREEDY)
    client.responses.delete(kept.id)
    said = {
        gone(lambda: client.responses.retrieve(kept.id)),
        gone(lambda: client.responses.retrieve(unkept.id)),
        gone(lambda: client.responses.delete(kept.id)),
    }
    assert len(said) == 1
    ((code, _),) = said
    assert gone(lambda: client.responses.create(input="Hi", previous_response_id=kept.id, **GREEDY))[0] == code


def test_an_answer_that_is_cut_off_is_incomplete(client):
    asked = GREEDY | {"max_output_tokens": 16}
    made = client.responses.create(input="Tell me a very long story.", **asked)
    assert (made.status, made.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert made.usage.output_tokens == 16
    *_, last = client.responses.create(input="Tell me a very long story.", stream=True, **asked)
    assert (last.type, last.response.output_text) == ("response.incomplete", made.output_text)


def test_a_stream_is_typed_events_in_order_that_make_up_the_response(client):
    asked = {"input": "What is the capital of France?", **GREEDY}
    events = list(client.responses.create(stream=True, **asked))
    kinds = [event.type for event in events]
    beginning = ["created", "in_progress", "output_item.added", "content_part.added"]
    end = ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert kinds[:4] == [f"response.{kind}" for kind in beginning]
    assert kinds[-4:] == [f"response.{kind}" for kind in end]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    final = events[-1].response
    assert "".join(event.delta for event in events[4:-4]) == events[-4].text == final.output_text
    assert events[0].response.status == "in_progress"
    assert (final.id, final.status) == (events[0].response.id, "completed")
    assert client.responses.retrieve(final.id).to_dict() == final.to_dict()
    assert client.responses.create(**asked).output_text == final.output_text


def test_the_clients_own_accumulation_of_a_stream_is_the_response(client):
    with client.responses.stream(input="What is the capital of France?", **GREEDY) as stream:
        final = stream.get_final_response()
    assert "Paris" in final.output_text


async def test_coroutines_get_the_same_events(async_client):
    stream = await async_client.responses.create(input="Hi", stream=True, **GREEDY)
    events = [event async for event in stream]
    assert (events[0].type, events[-1].type) in {
        ("response.created", "response.completed"),
        ("response.created", "response.incomplete"),
    }


def test_a_call_is_an_item_and_its_output_goes_on_from_there(client):
    asked = {"model": HERMES, "temperature": 0, "max_output_tokens": 200, "tools": [WEATHER]}
    must = {"tool_choice": "required", "parallel_tool_calls": False}
    made = client.responses.create(input="What is the weather in Rome?", **asked, **must)
    (call,) = [item for item in made.output if item.type == "function_call"]
    assert (call.name, call.status) == ("get_weather", "completed")
    assert json.loads(call.arguments)["city"] in {"Paris", "Rome", "Oslo"}
    told = {"type": "function_call_output", "call_id": call.call_id, "output": "It is 31 degrees."}
    answer = client.responses.create(input=[told], previous_response_id=made.id, **asked)
    assert answer.usage.input_tokens > made.usage.input_tokens
    assert answer.output
    events = list(client.responses.create(input="What is the weather in Rome?", stream=True, **asked, **must))
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert len(deltas) > 1
    assert "".join(deltas) == done.arguments == call.arguments


class Town(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Literal["Paris", "Rome", "Oslo"]
    is_capital: bool


def test_an_answer_is_parsed_into_a_class_of_the_clients(client):
    asked = GREEDY | {"max_output_tokens": 200}
    made = client.responses.parse(input="Describe the city of Rome as JSON.", text_format=Town, **asked)
    assert isinstance(made.output_parsed, Town)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"extra_body": {"no_such_parameter": 1}}, "no_such_parameter"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]}, "input"),
        ({"top_p": 2}, "top_p"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_supported_is_a_bad_request_that_names_it(client, options, param):
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(**{"input": "Hi", **GREEDY, **options})
    assert raised.value.param.startswith(param)

"""LlamaIndex's OpenAILike: chat, completion, streams, tools and structured outputs, pointed at this server."""

from typing import Literal

import openai
import pytest
from client_side import HERMES, answered, base_url
from live_server import DEMO, PATIENCE_S, until
from llama_index.core.llms import ChatMessage, MessageRole
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

CAPITAL = [
    ChatMessage(role=MessageRole.SYSTEM, content="Answer briefly."),
    ChatMessage(role=MessageRole.USER, content="What is the capital of France?"),
]


class Town(BaseModel):
    """A town."""

    name: Literal["Paris", "Rome", "Oslo"]
    is_capital: bool


def get_weather(city: Literal["Paris", "Rome", "Oslo"]) -> str:
    """Tells the weather of a city."""
    return f"It is 31 degrees in {city}."


@pytest.fixture
def make(server):
    """Makes clients that try once: its own retries ask for no header."""

    def make(model=DEMO, **options):
        where = {"api_base": base_url(server), "api_key": "none", "max_retries": 0, "timeout": PATIENCE_S}
        defaults = {"is_chat_model": True, "context_window": 8192, "temperature": 0, "max_tokens": 32}
        return OpenAILike(model=model, **where | defaults | options)

    return make


def test_it_answers_and_counts(make):
    answer = make().chat(CAPITAL)
    assert answer.message.role == MessageRole.ASSISTANT
    assert "Paris" in answer.message.content
    counts = answer.additional_kwargs
    assert counts["total_tokens"] == counts["prompt_tokens"] + counts["completion_tokens"] > 0


def test_it_streams_what_it_says_whole(make):
    llm = make()
    pieces = list(llm.stream_chat(CAPITAL))
    whole = llm.chat(CAPITAL).message.content
    assert "".join(piece.delta for piece in pieces) == pieces[-1].message.content == whole


async def test_it_works_for_coroutines(make):
    llm = make()
    answer = await llm.achat(CAPITAL)
    pieces = [piece.delta async for piece in await llm.astream_chat(CAPITAL)]
    assert "".join(pieces) == answer.message.content
    assert (await llm.acomplete("What is the capital of France?")).text


def test_it_continues_a_text(make):
    llm = make(is_chat_model=False, max_tokens=5)
    whole = llm.complete("The capital of France is")
    assert whole.text.startswith(" Paris")
    assert "".join(piece.delta for piece in llm.stream_complete("The capital of France is")) == whole.text


def test_log_probabilities_arrive(make):
    answer = make(logprobs=True, top_logprobs=2, max_tokens=4).chat(CAPITAL[1:])
    assert len(answer.logprobs) == answer.additional_kwargs["completion_tokens"] == 4
    assert all(len(likeliest) == 2 for likeliest in answer.logprobs)


def test_a_tool_is_called_and_its_answer_taken(make):
    llm = make(HERMES, is_function_calling_model=True, max_tokens=200)
    weather = FunctionTool.from_defaults(get_weather)
    question = ChatMessage(role=MessageRole.USER, content="What is the weather in Rome?")
    asked = llm.chat_with_tools([weather], chat_history=[question], tool_required=True)
    (call,) = llm.get_tool_calls_from_response(asked)
    assert call.tool_name == "get_weather"
    told = weather(**call.tool_kwargs)
    assert told.content.startswith("It is 31 degrees in ")
    reply = ChatMessage(role=MessageRole.TOOL, content=told.content, additional_kwargs={"tool_call_id": call.tool_id})
    answer = llm.chat_with_tools([weather], chat_history=[question, asked.message, reply])
    assert answer.additional_kwargs["prompt_tokens"] > asked.additional_kwargs["prompt_tokens"]
    *_, last = llm.stream_chat_with_tools([weather], chat_history=[question], tool_required=True)
    assert llm.get_tool_calls_from_response(last)[0].tool_kwargs == call.tool_kwargs


@pytest.mark.parametrize("by_schema", [True, False], ids=["response_format", "tools"])
def test_an_answer_is_an_object_of_a_class(make, by_schema):
    options = {"should_use_structured_outputs": by_schema, "is_function_calling_model": True, "max_tokens": 200}
    llm = make(HERMES, **options)
    town = llm.structured_predict(Town, PromptTemplate("Describe the city of {city} as JSON."), city="Rome")
    assert isinstance(town, Town)


def test_a_prompt_that_is_too_long_is_told_as_such_and_asked_once(server, make):
    before = answered(server, "/v1/chat/completions", 400)
    with pytest.raises(openai.BadRequestError) as raised:
        make(max_retries=3).chat([ChatMessage(role=MessageRole.USER, content="word " * 9000)])
    assert raised.value.code == "context_length_exceeded"
    until(lambda: answered(server, "/v1/chat/completions", 400) == before + 1)  # written after the answer

"""LangChain's ChatOpenAI, OpenAI and OpenAIEmbeddings: what applications do with them, pointed at this server."""

from typing import Literal

import pytest
from client_side import HERMES, base_url
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from live_server import DEMO, PATIENCE_S
from pydantic import BaseModel, Field

CAPITAL = "What is the capital of France?"


class Town(BaseModel):
    """A town."""

    name: Literal["Paris", "Rome", "Oslo"] = Field(description="its name")
    is_capital: bool = Field(description="whether it is one")


@tool
def get_weather(city: Literal["Paris", "Rome", "Oslo"]) -> str:
    """Tells the weather of a city."""
    return f"It is 31 degrees in {city}."


@pytest.fixture
def connection(server):
    """Where a client goes, and how often and long it tries."""
    return {"base_url": base_url(server), "api_key": "none", "max_retries": 0, "timeout": PATIENCE_S}


@pytest.fixture
def chat(connection):
    return ChatOpenAI(model=DEMO, temperature=0, max_tokens=32, **connection)


@pytest.fixture
def caller(connection):
    return ChatOpenAI(model=HERMES, temperature=0, max_tokens=200, **connection)


def test_it_answers_and_counts(chat):
    answer = chat.invoke([SystemMessage("Answer briefly."), HumanMessage(CAPITAL)])
    assert "Paris" in answer.content
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.response_metadata["model_name"] == DEMO
    usage = answer.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] > 0


def test_it_streams_what_it_says_whole_and_counts_where_it_is_asked_to(chat):
    whole = chat.invoke(CAPITAL)
    chunks = list(chat.stream(CAPITAL, stream_usage=True))
    assert len(chunks) > 3
    summed = sum(chunks[1:], chunks[0])
    assert summed.content == whole.content
    for kind in ("input_tokens", "output_tokens", "total_tokens"):
        assert summed.usage_metadata[kind] == whole.usage_metadata[kind]


async def test_it_works_for_coroutines_and_in_batches(chat):
    whole = await chat.ainvoke(CAPITAL)
    streamed = "".join([chunk.content async for chunk in chat.astream(CAPITAL)])
    assert streamed == whole.content
    several = await chat.abatch([CAPITAL, "What is the capital of Italy?", "Say hello."])
    assert len({answer.id for answer in several}) == 3
    assert all(answer.content for answer in several)


def test_log_probabilities_arrive(chat):
    answer = chat.bind(logprobs=True, top_logprobs=2).invoke(CAPITAL)
    told = answer.response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in told).startswith(answer.content[:5])
    assert all(len(token["top_logprobs"]) == 2 for token in told)


def test_a_tool_is_called_and_its_answer_taken(caller):
    bound = caller.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False, strict=True)
    question = HumanMessage("What is the weather in Rome?")
    asked = bound.invoke([question])
    (call,) = asked.tool_calls
    assert call["name"] == "get_weather"
    assert call["args"]["city"] in {"Paris", "Rome", "Oslo"}
    told = get_weather.invoke(call)
    assert isinstance(told, ToolMessage)
    answer = caller.bind_tools([get_weather]).invoke([question, asked, told])
    assert isinstance(answer, AIMessage)
    assert answer.usage_metadata["input_tokens"] > asked.usage_metadata["input_tokens"]
    chunks = list(bound.stream([question]))
    assert sum(chunks[1:], chunks[0]).tool_calls[0]["args"] == call["args"]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_an_answer_is_an_object_of_a_class(caller, method):
    town = caller.with_structured_output(Town, method=method, strict=True).invoke("Describe Rome as JSON.")
    assert isinstance(town, Town)


def test_responses_go_on_from_the_one_before(connection):
    chat = ChatOpenAI(
        model=DEMO, temperature=0, max_tokens=32, use_responses_api=True, use_previous_response_id=True, **connection
    )
    question = HumanMessage("Remember this: my name is Bob.")
    first = chat.invoke([question])
    second = chat.invoke([question, first, HumanMessage("What is my name?")])
    assert first.response_metadata["id"].startswith("resp_")
    assert second.usage_metadata["input_tokens"] > first.usage_metadata["total_tokens"]
    chunks = list(chat.stream([question]))
    assert sum(chunks[1:], chunks[0]).text == first.text


def test_texts_are_continued(connection):
    llm = OpenAI(model=DEMO, temperature=0, max_tokens=5, **connection)
    assert llm.invoke("The capital of France is").startswith(" Paris")
    assert "".join(llm.stream("The capital of France is")).startswith(" Paris")
    assert len(llm.generate(["The capital of France is", "The sea is"]).generations) == 2


def test_texts_become_vectors(connection):
    embeddings = OpenAIEmbeddings(model=DEMO, check_embedding_ctx_length=False, **connection)
    vectors = embeddings.embed_documents(["The sea", "A cat"])
    assert [len(vector) for vector in vectors] == [576, 576]
    assert embeddings.embed_query("The sea") == pytest.approx(vectors[0], abs=1e-5)


def test_a_prompt_that_is_too_long_is_told_as_such(chat):
    with pytest.raises(ContextOverflowError):
        chat.invoke("word " * 9000)

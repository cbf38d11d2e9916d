from __future__ import annotations

import asyncio
import re
from contextlib import aclosing

import pytest

from fakes import settle
from inferapi.application import responses as responses_module
from inferapi.application.response_items import CallItem, CallOutputItem, MessageItem, new_item_id
from inferapi.application.response_output import ItemAdded, ItemDone, ItemGrew
from inferapi.application.response_records import Response
from inferapi.application.responses import Begun
from inferapi.domain.chat import Message, SessionLimits, SessionRef, ToolCall
from inferapi.domain.errors import (
    ContextWindowExceeded,
    HistoryNotSaved,
    InvalidRequest,
    ModelNotFound,
    OutOfMemory,
    ResponseNotFound,
    SessionNotFound,
    SessionStoreUnavailable,
    SessionUnreadable,
)
from inferapi.domain.generation import SamplingParams, Tool
from inferapi.domain.model import ModelRef
from responses_side import answered, question, said

WEATHER = Tool("weather", "", '{"type":"object"}')


@pytest.fixture
async def stage(stage):
    await stage.load()
    return stage


@pytest.fixture
def responses(stage):
    return stage.openai.responses


async def stored(stage, owner: str = "") -> list[str]:
    """The ids of an owner's responses in the store."""
    return [line.session_id for line in (await stage.store.page(f"responses/{owner}", 100, None)).sessions]


async def test_an_answer_begins_grows_and_ends_with_the_response(stage, responses):
    async with aclosing(responses.respond(question(told={"user": "me"}))) as items:
        begun, *changes, response = [item async for item in items]
    assert begun == Begun(response.response_id, response.created_at_s, "gpt2", {"user": "me"})
    assert [type(change) for change in changes] == [ItemAdded, ItemGrew, ItemGrew, ItemDone]
    assert response.output == (MessageItem(changes[0].item.item_id, "assistant", ("Hello there",)),)
    assert (response.model, response.finish_reason, response.told) == ("gpt2", "stop", {"user": "me"})
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (1, 2)
    assert re.fullmatch(r"resp_[0-9a-f]{48}", response.response_id)
    assert response.created_at_s == response.completed_at_s == stage.clock.wall_s()


async def test_a_stored_response_is_read_as_it_was_told(responses):
    response = await answered(responses, question(told={"metadata": {"a": "b"}}))
    assert await responses.read("", response.response_id) == response


async def test_a_response_that_is_not_to_be_stored_touches_no_store(stage, responses):
    response = await answered(responses, question(stores=False))
    assert stage.store.calls == []
    with pytest.raises(ResponseNotFound):
        await responses.read("", response.response_id)


async def test_the_model_hears_the_instructions_and_the_question(stage, responses):
    await answered(responses, question("Who?", instructions="Be kind."))
    assert stage.engine.requests[-1].prompt.messages == (Message("system", "Be kind."), Message("user", "Who?"))


async def test_who_goes_on_from_a_response_goes_on_with_all_before_it_but_the_instructions(stage, responses):
    first = await answered(responses, question("One?", instructions="Be kind."))
    second = await answered(responses, question("Two?", previous_response_id=first.response_id))
    asked = question("Three?", previous_response_id=second.response_id, instructions="Rhyme.")
    third = await answered(responses, asked)
    assert stage.engine.requests[-1].prompt.messages == (
        Message("system", "Rhyme."),
        Message("user", "One?"),
        Message("assistant", "Hello there"),
        Message("user", "Two?"),
        Message("assistant", "Hello there"),
        Message("user", "Three?"),
    )
    assert third.asked[:4] == (*first.asked, *first.output, *second.asked[2:], *second.output)


async def test_any_number_of_responses_go_on_from_one_side_by_side(stage, responses):
    first = await answered(responses, question("One?"))
    before = len(stage.engine.requests)
    branches = [question(f"{number}?", previous_response_id=first.response_id) for number in range(4)]
    told = await asyncio.gather(*(answered(responses, branch) for branch in branches))
    assert len({response.response_id for response in told}) == 4
    heard = [request.prompt.messages[-1].content for request in stage.engine.requests[before:]]
    assert sorted(heard) == ["0?", "1?", "2?", "3?"]
    assert await responses.read("", first.response_id) == first


async def test_a_response_outlives_those_that_it_went_on_from(responses):
    first = await answered(responses, question("One?"))
    second = await answered(responses, question("Two?", previous_response_id=first.response_id))
    await responses.delete("", first.response_id)
    assert await responses.read("", second.response_id) == second
    third = await answered(responses, question("Three?", previous_response_id=second.response_id))
    said_before = [text for item in third.asked for text in item.texts]
    assert said_before == ["One?", "Hello there", "Two?", "Hello there", "Three?"]


async def test_who_stores_nothing_may_go_on_from_what_is_stored(stage, responses):
    first = await answered(responses, question("One?"))
    await answered(responses, question("Two?", previous_response_id=first.response_id, stores=False))
    assert [message.content for message in stage.engine.requests[-1].prompt.messages] == ["One?", "Hello there", "Two?"]
    assert await stored(stage) == [first.response_id]


async def test_log_probabilities_are_kept_with_their_response_and_not_carried_along(responses):
    first = await answered(responses, question("One?", sampling=SamplingParams(top_logprobs=2)))
    assert [token.chance.text for token in first.output[0].tokens] == ["Hello", " there"]
    assert await responses.read("", first.response_id) == first
    second = await answered(responses, question("Two?", previous_response_id=first.response_id))
    assert second.asked[1].tokens == ()


@pytest.mark.parametrize(
    "response_id",
    ["resp_" + "0" * 48, "", "resp_", "resp_0", "resp_" + "0" * 49, "resp_" + "G" * 48, "a:b", "../x", "é", "x\n"],
)
async def test_an_id_of_no_response_is_unknown_whatever_it_looks_like(responses, response_id):
    with pytest.raises(ResponseNotFound):
        await responses.read("", response_id)
    with pytest.raises(ResponseNotFound):
        await responses.delete("", response_id)
    with pytest.raises(ResponseNotFound) as caught:
        await answered(responses, question(previous_response_id=response_id))
    assert caught.value.facts == {"param": "previous_response_id"}


async def test_a_response_of_somebody_else_is_unknown(stage, responses):
    response = await answered(responses, question(owner="alice"))
    for owner in ("", "bob", "Alice", "responses"):
        with pytest.raises(ResponseNotFound):
            await responses.read(owner, response.response_id)
        with pytest.raises(ResponseNotFound):
            await responses.delete(owner, response.response_id)
        with pytest.raises(ResponseNotFound):
            await answered(responses, question(owner=owner, previous_response_id=response.response_id))
    assert await responses.read("alice", response.response_id) == response
    assert stage.engine.requests[-1].salt == "alice"


async def test_a_response_is_forgotten_after_its_time(stage, responses):
    response = await answered(responses, question())
    await stage.clock.advance(3601)
    with pytest.raises(ResponseNotFound):
        await responses.read("", response.response_id)


async def test_a_response_is_deleted_once(responses):
    response = await answered(responses, question())
    await responses.delete("", response.response_id)
    for _ in range(2):
        with pytest.raises(ResponseNotFound):
            await responses.delete("", response.response_id)


async def test_responses_are_no_sessions_and_sessions_no_responses(stage, responses):
    response = await answered(responses, question())
    assert (await stage.sessions.page("", 100, None)).sessions == ()
    with pytest.raises(SessionNotFound):
        await stage.sessions.read(SessionRef("", response.response_id))
    session_id = "resp_" + "1" * 48
    await stage.say("Hi", session_id)
    with pytest.raises(ResponseNotFound):
        await responses.read("", session_id)


async def test_an_answer_cut_short_is_not_stored(stage, responses):
    async with aclosing(responses.respond(question())) as items:
        assert isinstance(await anext(items), Begun)
    await settle()
    assert await stored(stage) == []
    assert (stage.engine.in_flight, stage.engine.cancelled) == (0, 1)


async def test_an_answer_that_failed_is_not_stored(stage, responses):
    stage.engine.fail_with = OutOfMemory()
    with pytest.raises(OutOfMemory):
        await answered(responses, question())
    assert await stored(stage) == []


async def test_a_model_that_is_not_there_stores_nothing(stage, responses):
    with pytest.raises(ModelNotFound):
        await answered(responses, question(model=ModelRef.parse("nowhere")))
    assert await stored(stage) == []


async def test_a_store_that_does_not_answer_is_told_before_any_work(stage, responses):
    stage.store.errors["begin"] = SessionStoreUnavailable()
    with pytest.raises(SessionStoreUnavailable):
        await answered(responses, question())
    assert stage.engine.requests == []
    assert (await answered(responses, question(stores=False))).output[0].texts == ("Hello there",)


@pytest.mark.parametrize("error", [SessionStoreUnavailable(), HistoryNotSaved(problem="it is full")])
async def test_a_response_that_could_not_be_stored_is_told_so_after_its_text(stage, responses, error):
    stage.store.errors["commit"] = error
    heard = []

    async def hear():
        async with aclosing(responses.respond(question())) as items:
            async for item in items:
                heard.append(item)  # noqa: PERF401 - what was heard before an error is looked at

    with pytest.raises(HistoryNotSaved):
        await hear()
    assert "".join(item.delta for item in heard if isinstance(item, ItemGrew)) == "Hello there"
    assert not any(isinstance(item, Response) for item in heard)
    assert await stored(stage) == []


async def test_a_response_that_is_deleted_while_it_is_made_is_not_stored(stage, responses):
    stage.engine.gate.hold()
    async with aclosing(responses.respond(question())) as items:
        response_id = (await anext(items)).response_id
        with pytest.raises(ResponseNotFound):
            await responses.read("", response_id)
        await responses.delete("", response_id)
        stage.engine.gate.open()
        with pytest.raises(HistoryNotSaved):
            [item async for item in items]
    with pytest.raises(ResponseNotFound):
        await responses.read("", response_id)


async def test_a_response_that_takes_long_is_stored_all_the_same(stage, responses):
    stage.engine.gate.hold()
    answering = asyncio.create_task(answered(responses, question()))
    await stage.clock.advance(100)  # many times the lease
    stage.engine.gate.open()
    response = await answering
    assert response.completed_at_s - response.created_at_s == 100
    assert await responses.read("", response.response_id) == response


async def test_what_is_stored_and_no_response_is_unreadable(stage, responses):
    response_id = "resp_" + "2" * 48
    await stage.say("Hi", response_id, owner="responses/")
    with pytest.raises(SessionUnreadable):
        await responses.read("", response_id)
    await stage.say("Hi", response_id, owner="responses/")
    with pytest.raises(SessionUnreadable, match="has 2"):
        await responses.read("", response_id)
    await responses.delete("", response_id)


async def test_more_than_a_session_may_hold_is_refused_before_any_work(make_stage):
    stage = await make_stage(limits=SessionLimits(1000, 4096))
    await stage.load()
    responses = stage.openai.responses
    with pytest.raises(InvalidRequest, match=r"input: .* 4096 bytes"):
        await answered(responses, question("é" * 2048))
    assert (stage.engine.requests, stage.store.calls) == ([], [])
    response = await answered(responses, question("x" * 3000))
    with pytest.raises(InvalidRequest, match="with what came before"):
        await answered(responses, question("x" * 1000, previous_response_id=response.response_id))
    await answered(responses, question("x" * 1000, previous_response_id=response.response_id, stores=False))


async def test_without_a_limit_an_answer_has_what_the_window_has_room_for(stage, responses):
    asked = {"sampling": SamplingParams(max_new_tokens=2000), "has_limit": False}
    response = await answered(responses, question("word " * 1000, **asked))
    assert response.output[0].texts == ("Hello there",)
    assert stage.engine.requests[-1].sampling.max_new_tokens == 24
    with pytest.raises(ContextWindowExceeded):
        await answered(responses, question("word " * 1000, sampling=SamplingParams(max_new_tokens=2000)))


async def test_an_answer_cut_by_its_limit_says_so(responses):
    response = await answered(responses, question(sampling=SamplingParams(max_new_tokens=1)))
    assert (response.finish_reason, response.output[0].status) == ("length", "incomplete")
    assert await responses.read("", response.response_id) == response


@pytest.fixture
async def calling_stage(make_stage):
    """A model that calls a function."""
    call = ['<tool_call>\n{"name": "weather", "arguments"', ': {"city": "Oslo"}}\n</tool_call>']
    stage = await make_stage("Wait.", *call)
    stage.launcher.facts = {"tool_format": "hermes"}
    await stage.load()
    return stage


async def test_a_call_is_an_item_and_its_output_goes_on_from_it(calling_stage):
    responses = calling_stage.openai.responses
    first = await answered(responses, question("Rain?", tools=(WEATHER,)))
    message, call = first.output
    assert (message.texts, first.finish_reason) == (("Wait.",), "tool_calls")
    assert (call.name, call.arguments, call.status) == ("weather", '{"city": "Oslo"}', "completed")
    output = CallOutputItem(new_item_id(CallOutputItem), call.call_id, "rain")
    await answered(responses, question(items=(output,), previous_response_id=first.response_id, tools=(WEATHER,)))
    assert calling_stage.engine.requests[-1].prompt.messages == (
        Message("user", "Rain?"),
        Message("assistant", "Wait.", tool_calls=(ToolCall(call.call_id, "weather", '{"city": "Oslo"}'),)),
        Message("tool", "rain", tool_call_id=call.call_id),
    )
    assert calling_stage.engine.requests[-1].prompt.tools == (WEATHER,)


async def test_the_output_of_a_call_that_nobody_made_is_refused_before_any_work(stage, responses):
    call = CallItem(new_item_id(CallItem), "call_1", "weather", "{}")
    output = CallOutputItem(new_item_id(CallOutputItem), "call_2", "rain")
    with pytest.raises(InvalidRequest, match="function_call_output"):
        await answered(responses, question(items=(said("Rain?"), call, output)))
    assert (stage.engine.requests, stage.store.calls) == ([], [])


async def test_reasoning_is_an_item_of_its_own(make_stage):
    stage = await make_stage("<think>", "Hm.", "</think>", "Rain.")
    stage.launcher.facts = {"reasoning_tags": ("<think>", "</think>")}
    await stage.load()
    responses = stage.openai.responses
    first = await answered(responses, question("Rain?"))
    assert [item.texts for item in first.output] == [("Hm.",), ("Rain.",)]
    await answered(responses, question("Why?", previous_response_id=first.response_id))
    assert stage.engine.requests[-1].prompt.messages == (
        Message("user", "Rain?"),
        Message("assistant", "Rain."),
        Message("user", "Why?"),
    )


async def test_a_response_larger_than_every_store_gives_back_is_not_stored(stage, responses, monkeypatch):
    monkeypatch.setattr(responses_module, "MOST_STORED_BYTES", 2000)
    await answered(responses, question("x" * 1000))
    with pytest.raises(HistoryNotSaved, match="more than 2000 bytes"):
        await answered(responses, question("x" * 2000))
    assert len(await stored(stage)) == 1

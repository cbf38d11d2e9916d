"""Responses in a file: they outlive the process that made them."""

from __future__ import annotations

import pytest

from inferapi.adapters.sqlite_sessions import SqliteSessionStore
from inferapi.application.policy import SessionPolicy
from inferapi.application.response_items import MessageItem
from inferapi.application.responses import Responses
from inferapi.application.sessions import Sessions
from inferapi.application.turns import TurnGate
from inferapi.domain.chat import SessionLimits
from inferapi.domain.errors import ResponseNotFound
from inferapi.domain.generation import SamplingParams
from responses_side import answered, question
from session_contract import ODD

POLICY = SessionPolicy("", wait_s=10.0, lease_s=8.0, limits=SessionLimits(1000, 10**6))


@pytest.fixture
async def opened(stage, tmp_path):
    """Opens the file anew, as a server that starts does."""
    await stage.load()
    stores = []

    def open_file() -> Responses:
        stores.append(SqliteSessionStore(tmp_path / "sessions.db", stage.clock, 3600.0))
        turns = TurnGate(stores[-1], stage.clock, POLICY)
        return Responses(stage.completion, Sessions(stores[-1], turns, stage.clock, POLICY), turns, stage.clock)

    yield open_file
    for store in stores:
        await store.aclose()


async def test_a_response_survives_a_restart_whatever_was_said(opened):
    asked = question(ODD, instructions=ODD, sampling=SamplingParams(top_logprobs=2), told={"metadata": {"a": ODD}})
    response = await answered(opened(), asked)
    assert response.asked[0].texts == (ODD,)
    assert await opened().read("", response.response_id) == response


async def test_a_restarted_server_goes_on_from_a_response(stage, opened):
    first = await answered(opened(), question("One?"))
    second = await answered(opened(), question("Two?", previous_response_id=first.response_id))
    said = [text for item in second.asked if isinstance(item, MessageItem) for text in item.texts]
    assert said == ["One?", "Hello there", "Two?"]
    assert [message.content for message in stage.engine.requests[-1].prompt.messages] == said


async def test_what_was_deleted_stays_deleted_and_what_expired_is_forgotten(stage, opened):
    responses = opened()
    deleted, expired = await answered(responses, question()), await answered(responses, question())
    await responses.delete("", deleted.response_id)
    with pytest.raises(ResponseNotFound):
        await opened().read("", deleted.response_id)
    await opened().read("", expired.response_id)
    await stage.clock.advance(3601)
    with pytest.raises(ResponseNotFound):
        await opened().read("", expired.response_id)

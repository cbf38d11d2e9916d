"""``GET /events``: the journal over HTTP, and loads under way in ``/status``."""

from __future__ import annotations

import pytest

from inferapi.domain.states import ModelState


async def test_events_tell_what_happened_and_why_oldest_first(client, stage):
    await stage.load("gpt2")
    await stage.lifecycle.unload()
    events = (await client.get("/events")).json()["events"]
    assert [(event["id"], event["event"], event["model"]) for event in events] == [
        (1, "load_started", "gpt2"),
        (2, "loaded", "gpt2"),
        (3, "unloaded", "gpt2"),
    ]
    assert [event["time"] for event in events] == [stage.clock.wall_s()] * 3
    assert events[0]["reason"] == "asked for"
    assert {"estimated_bytes", "actual_bytes", "estimate_error_ratio"} <= set(events[1])
    assert events[2]["held_bytes"] == events[2]["returned_bytes"] == 2 * 1024**3


async def test_before_anything_happened_there_are_none(client):
    assert (await client.get("/events")).json() == {"events": []}


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ({}, [1, 2, 3, 4, 5]),
        ({"model": "gpt2"}, [1, 2, 4]),
        ({"model": "other", "after": 3}, [5]),
        ({"after": 3}, [4, 5]),
        ({"after": 99}, []),
        ({"limit": 2}, [4, 5]),
        ({"model": "gpt2", "after": 1, "limit": 1}, [4]),
        ({"model": "nobody/knows"}, []),
        ({"limit": 1000, "after": 0}, [1, 2, 3, 4, 5]),
    ],
)
async def test_events_can_be_asked_for_by_model_number_and_count(client, stage, query, ids):
    await stage.load("gpt2")
    await stage.load("other")  # starts, gpt2 makes room, is loaded
    events = (await client.get("/events", params=query)).json()["events"]
    assert [event["id"] for event in events] == ids


@pytest.mark.parametrize(
    "query",
    [
        {"limit": 0},
        {"limit": 1001},
        {"limit": "many"},
        {"limit": -1},
        {"after": -1},
        {"after": 2**54},
        {"after": "x"},
        {"model": ""},
        {"model": "x" * 300},
    ],
)
async def test_a_question_that_makes_no_sense_is_refused(client, query):
    answer = await client.get("/events", params=query)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_a_model_name_that_is_a_path_finds_nothing_and_breaks_nothing(client, stage):
    await stage.load("gpt2")
    answer = await client.get("/events", params={"model": "../../etc/passwd"})
    assert answer.status_code in {200, 422}
    assert answer.json().get("events", []) == []


async def test_a_hundred_events_come_unless_told_otherwise(client, stage):
    for threshold_s in range(1, 151):
        stage.lifecycle.set_inactivity_threshold(threshold_s)
    events = (await client.get("/events")).json()["events"]
    assert (len(events), events[0]["id"], events[-1]["threshold_s"]) == (100, 51, 150)


async def test_asking_for_events_keeps_no_model_awake_and_wakes_none(make_stage, client_of):
    stage = await make_stage(inactivity_threshold_s=10)
    await stage.load("gpt2")
    async with client_of(stage.app()) as client:
        await stage.clock.advance(6)
        await client.get("/events")
        await stage.clock.advance(4)
        events = (await client.get("/events")).json()["events"]
    assert events[-1]["reason"] == "not used for 10 s"
    assert len(stage.launcher.launched) == 1


async def test_status_shows_how_far_a_load_is(client, stage):
    stage.models.fetch_reports = [(ModelState.DOWNLOADING, 25, 100)]
    stage.models.fetch_gate.hold()
    await stage.hold("gpt2")
    await stage.clock.advance(3)
    body = (await client.get("/status")).json()
    (line,) = body["models"]
    assert (body["state"], line["state"], line["queued"]) == ("downloading", "downloading", 1)
    assert line["progress"] == {
        "model": "gpt2",
        "stage": "downloading",
        "done_bytes": 25,
        "total_bytes": 100,
        "elapsed_s": 3.0,
        "expected_s": 12.0,
    }

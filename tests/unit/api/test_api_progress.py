"""A load as a stream of events, for clients that ask for one."""

from __future__ import annotations

import asyncio
import json

import pytest

from fakes import settle
from inferapi.domain.errors import ModelLoadFailed
from inferapi.domain.states import ModelState

SSE = {"Accept": "text/event-stream"}
BODIES = {"/load_model": {"model_name": "other"}, "/change_model": {"new_model_name": "other"}}


def events_of(text: str) -> list:
    """The data of each event; comments are not events."""
    blocks = [block for block in text.split("\n\n") if block.startswith("data: ")]
    return [data if (data := block[6:]) == "[DONE]" else json.loads(data) for block in blocks]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/load_model", "Model other loaded successfully"),
        ("/change_model", "Changed to model other successfully (0.27 GB)"),
    ],
)
async def test_a_load_is_told_stage_by_stage_and_ends_with_its_answer(client, stage, path, status):
    await stage.load("gpt2")
    stage.models.fetch_reports = [(ModelState.DOWNLOADING, 40, 100)]
    gates = [stage.models.profile_gate, stage.models.fetch_gate, stage.launcher.gate, stage.launcher.warming_gate]
    for gate in gates:
        gate.hold()
    asking = asyncio.create_task(client.post(path, json=BODIES[path], headers=SSE))
    for gate in gates:
        await settle()
        gate.open()
    answer = await asking
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    *steps, last, done = events_of(answer.text)
    assert (last, done) == ({"status": status}, "[DONE]")
    told = list(dict.fromkeys(step["stage"] for step in steps))
    assert [one for one in told if one != "queued"] == [
        "resolving",
        "downloading",
        "admitting",
        "loading",
        "warming",
        "ready",
    ]
    assert {step["model"] for step in steps} == {"other"}
    assert set(steps[0]) == {"model", "stage", "done_bytes", "total_bytes", "elapsed_s", "expected_s"}
    assert (40, 100) in {(step["done_bytes"], step["total_bytes"]) for step in steps if step["stage"] == "downloading"}


async def test_without_asking_for_events_there_is_the_answer_alone(client):
    answer = await client.post("/load_model", json={"model_name": "gpt2"}, headers={"Accept": "application/json"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {"status": "Model gpt2 loaded successfully"}


async def test_what_is_in_memory_is_answered_in_one_event(client, stage):
    await stage.load("gpt2")
    answer = await client.post("/load_model", json={"model_name": "gpt2"}, headers=SSE)
    assert events_of(answer.text) == [{"status": "Model gpt2 loaded successfully"}, "[DONE]"]


async def test_a_load_that_fails_under_way_ends_in_an_error_event_without_done(client, stage):
    await stage.load("gpt2")
    stage.launcher.errors["other"] = [ModelLoadFailed(model="other", problem="no")]
    answer = await client.post("/change_model", json={"new_model_name": "other"}, headers=SSE)
    *steps, last = events_of(answer.text)
    assert answer.status_code == 200
    assert (last["error"]["code"], last["error"]["status"]) == ("model_load_failed", 500)
    assert last["error"]["detail"] == "Model other could not be loaded: no. Model gpt2 is serving again."
    assert steps[-1]["stage"] == "failed"


async def test_what_is_refused_before_the_first_step_keeps_its_status(client):
    answer = await client.post("/change_model", json={"new_model_name": "other"}, headers=SSE)
    assert (answer.status_code, answer.json()["code"]) == (409, "model_not_loaded")


async def test_a_dry_run_is_never_a_stream(client):
    answer = await client.post("/load_model", json={"model_name": "gpt2", "dry_run": True}, headers=SSE)
    assert (answer.headers["content-type"], answer.json()["fits"]) == ("application/json", True)


async def test_a_load_that_is_cancelled_says_so_in_the_stream(client, stage):
    stage.launcher.gate.hold()
    asking = asyncio.create_task(client.post("/load_model", json={"model_name": "gpt2"}, headers=SSE))
    await settle()
    answer = await client.post("/unload_model", json={"model_name": "gpt2"})
    assert answer.json() == {"status": "Loading of model gpt2 cancelled"}
    *_, last = events_of((await asking).text)
    assert last["error"]["code"] == "load_cancelled"


@pytest.mark.parametrize("streams", [True, False])
async def test_a_client_that_leaves_only_stops_listening(stage, call, streams):
    stage.launcher.gate.hold()
    one = call(stage.app(), "/load_model", {"model_name": "gpt2"}, headers=SSE if streams else {})
    await settle()
    assert bool(one.body) is streams
    await one.leave()
    assert one.task.done()
    stage.launcher.gate.open()
    await settle()
    assert (stage.launcher.live, str(stage.lifecycle.current)) == (["gpt2"], "gpt2")


async def test_two_clients_hear_the_same_load(client, stage):
    stage.launcher.gate.hold()
    asking = [
        asyncio.create_task(client.post("/load_model", json={"model_name": "gpt2"}, headers=SSE)) for _ in range(2)
    ]
    await settle()
    stage.launcher.gate.open()
    told = [events_of((await one).text) for one in asking]
    assert [events[-2:] for events in told] == [[{"status": "Model gpt2 loaded successfully"}, "[DONE]"]] * 2
    assert [events[-3]["stage"] for events in told] == ["ready", "ready"]
    assert len(stage.launcher.launched) == 1


async def test_a_request_of_a_model_that_is_not_loaded_is_answered_by_it(client, stage):
    await stage.load("gpt2")
    await stage.clock.advance(1)
    answer = await client.post("/infer", json={"text": "Hi", "model": "other", "details": True})
    assert (answer.status_code, answer.json()["details"]["model"]) == (200, "other")


async def test_pinned_is_an_option_of_a_load(client, stage):
    await client.post("/load_model", json={"model_name": "gpt2", "pinned": True})
    (line,) = (await client.get("/status")).json()["models"]
    assert (line["name"], line["pinned"], line["unloads_in_s"]) == ("gpt2", True, None)

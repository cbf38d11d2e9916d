"""Each request is finished, failed, aborted or rejected, and never two of them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from fakes import TIMINGS, settle
from inferapi.application.embedding import Embedding
from inferapi.domain.errors import (
    GenerationTimeout,
    HistoryNotSaved,
    InferapiError,
    InvalidRequest,
    ModelCrashed,
    ModelLoadFailed,
    ModelNotLoaded,
    OutOfMemory,
    QueueFull,
)
from inferapi.domain.generation import Prompt, SamplingParams
from inferapi.domain.model import ModelRef
from metrics_page import MetricsPage

HI, GREEDY = Prompt(text="Hi you"), SamplingParams(temperature=0.0)


def page(stage) -> MetricsPage:
    return MetricsPage(stage.metrics.page(stage.lifecycle.status()))


def ends(stage) -> dict[str, float]:
    """How requests ended, by finish reason, and those that were aborted."""
    told = page(stage)
    counted = told.counted("requests_finished_total", "finish_reason")
    aborted = told.sum("requests_aborted_total")
    return counted | ({"aborted": aborted} if aborted else {})


def gauges(stage) -> tuple[float, float]:
    told = page(stage)
    return told.sum("num_requests_running"), told.sum("num_requests_waiting")


async def test_an_answer_that_ended_is_finished_with_its_reason_and_its_time(stage):
    await stage.load()
    await stage.infer()
    await stage.infer(max_new_tokens=1)
    assert ends(stage) == {"stop": 1.0, "length": 1.0}
    told = page(stage)
    assert told.value("e2e_request_latency_seconds_count", model="gpt2") == 2.0
    assert told.value("e2e_request_latency_seconds_sum", model="gpt2") == 2 * TIMINGS.total_s


async def test_a_turn_is_one_request(stage):
    await stage.load()
    await stage.say("Hi")
    assert ends(stage) == {"stop": 1.0}


async def test_each_choice_is_a_request_of_its_own(stage):
    await stage.load()
    async with aclosing(stage.completion.complete(HI, GREEDY, n=3)) as items:
        assert [item async for item in items]
    assert ends(stage) == {"stop": 3.0}


async def test_vectors_are_a_request_whose_tokens_count(stage):
    await stage.load()
    await Embedding(stage.lifecycle, stage.clock, 60.0).embed(["one two", "three"])
    assert ends(stage) == {"stop": 1.0}
    assert page(stage).value("prompt_tokens_total", model="gpt2") == 3.0


@pytest.mark.parametrize("error", [GenerationTimeout(timeout_s=1.0), ModelCrashed(model="gpt2"), OutOfMemory()])
async def test_a_generation_that_fails_is_counted_by_its_code(stage, error):
    engine = await stage.load()
    engine.fail_with = error
    with pytest.raises(type(error)):
        await stage.infer()
    with pytest.raises(type(error)):
        await Embedding(stage.lifecycle, stage.clock, 60.0).embed(["one"])
    assert ends(stage) == {error.code: 2.0}
    assert gauges(stage) == (0.0, 0.0)


async def test_what_an_engine_refuses_did_not_begin(stage):
    engine = await stage.load()
    for error in (QueueFull(waiting=3), InvalidRequest(problem="the template refuses it")):
        engine.fail_with = error
        with pytest.raises(InferapiError):
            await stage.infer()
    assert ends(stage) == {}


async def test_a_request_whose_model_cannot_be_loaded_did_not_begin(stage):
    stage.launcher.errors["gpt2"] = [ModelLoadFailed(model="gpt2", problem="no")]
    with pytest.raises(ModelLoadFailed):
        await stage.infer(model="gpt2")
    assert ends(stage) == {}


async def test_without_a_model_nothing_begins(stage):
    with pytest.raises(ModelNotLoaded):
        await stage.infer()
    assert ends(stage) == {}


async def test_a_request_that_is_cancelled_while_it_runs_is_aborted(stage):
    await stage.load()
    request = await stage.infer_until_held()
    assert gauges(stage) == (1.0, 0.0)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    assert ends(stage) == {"aborted": 1.0}
    assert gauges(stage) == (0.0, 0.0)


async def test_an_answer_that_is_not_read_to_its_end_is_aborted(stage):
    await stage.load()
    async with aclosing(stage.inference.infer(HI, GREEDY)) as items:
        await anext(items)
    assert ends(stage) == {"aborted": 1.0}


async def test_a_request_that_is_cancelled_while_it_waits_in_the_queue_is_aborted(make_stage):
    stage = await make_stage(max_batch=1)
    await stage.load()
    running = await stage.infer_until_held()
    waiting = asyncio.create_task(stage.infer())
    await settle()
    assert gauges(stage) == (1.0, 1.0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert gauges(stage) == (1.0, 0.0)
    stage.engine.gate.open()
    await running
    assert ends(stage) == {"stop": 1.0, "aborted": 1.0}
    assert gauges(stage) == (0.0, 0.0)


async def test_a_request_that_is_cancelled_while_it_waits_for_a_model_is_aborted(stage):
    stage.launcher.gate.hold()
    waiting = asyncio.create_task(stage.infer(model="gpt2"))
    await settle()
    assert gauges(stage) == (0.0, 1.0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert ends(stage) == {"aborted": 1.0}
    assert gauges(stage) == (0.0, 0.0)
    stage.launcher.gate.open()


async def test_vectors_that_nobody_waits_for_are_aborted(stage):
    engine = await stage.load()
    engine.gate.hold()
    work = asyncio.create_task(Embedding(stage.lifecycle, stage.clock, 60.0).embed(["one"]))
    await settle()
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    assert ends(stage) == {"aborted": 1.0}
    assert page(stage).sum("prompt_tokens_total") == 0.0


async def test_when_one_choice_fails_those_beside_it_are_aborted(stage):
    engine = await stage.load()
    engine.fail_with = OutOfMemory()
    with pytest.raises(OutOfMemory):
        async with aclosing(stage.completion.complete(HI, GREEDY, n=2)) as items:
            [item async for item in items]
    counted = ends(stage)
    assert counted["insufficient_memory"] >= 1.0
    assert sum(counted.values()) == 2.0


async def test_an_answer_that_could_not_be_stored_was_finished_all_the_same(stage):
    await stage.load()
    stage.store.errors["commit"] = HistoryNotSaved(problem="the lease was lost")
    with pytest.raises(HistoryNotSaved):
        await stage.say("Hi")
    assert ends(stage) == {"stop": 1.0}
    assert page(stage).counted("session_store_errors_total", "kind") == {"history_not_saved": 1.0}


async def test_a_read_of_the_page_neither_wakes_a_model_nor_keeps_one_awake(stage):
    await stage.load()
    for _ in range(10):
        await stage.clock.advance(30)
        page(stage)
    assert stage.states() == {"gpt2": "unloaded"}
    assert len(stage.launcher.launched) == 1


async def test_loads_and_unloads_are_counted_by_what_came_of_them(stage):
    await stage.load("gpt2")
    stage.launcher.errors["other"] = [ModelLoadFailed(model="other", problem="no")]
    with pytest.raises(ModelLoadFailed):
        await stage.lifecycle.change(ModelRef("other"))
    told = page(stage)
    assert told.counted("model_loads_total", "outcome") == {"loaded": 1.0, "failed": 1.0, "restored": 1.0}
    assert told.counted("model_unloads_total", "reason") == {"replaced": 1.0}
    await stage.clock.advance(300)
    await stage.infer()
    await stage.lifecycle.unload()
    told = page(stage)
    assert told.counted("model_loads_total", "outcome") == {"loaded": 2.0, "failed": 1.0, "restored": 1.0}
    assert told.counted("model_unloads_total", "reason") == {"replaced": 1.0, "idle": 1.0, "asked": 1.0}
    assert told.value("model_load_seconds_count", model="gpt2") == 3.0
    assert told.sum("model_memory_bytes") == 0.0


async def test_a_model_that_makes_room_and_one_that_dies_say_so(stage):
    await stage.load("gpt2")
    await stage.clock.advance(5)
    await stage.infer(model="other")
    assert page(stage).counted("model_unloads_total", "reason") == {"evicted": 1.0}
    stage.engine.crash()
    await settle()
    assert page(stage).counted("model_unloads_total", "reason") == {"evicted": 1.0, "crashed": 1.0}


async def test_a_load_that_is_refused_or_cancelled_says_so(make_stage):
    stage = await make_stage(memory_budget_bytes=1)
    with pytest.raises(InferapiError):
        await stage.load("gpt2")
    assert page(stage).counted("model_loads_total", "outcome") == {"refused": 1.0}
    stage = await make_stage()
    stage.launcher.gate.hold()
    loading = asyncio.create_task(stage.load("gpt2"))
    await settle()
    unloading = asyncio.create_task(stage.lifecycle.unload(ModelRef("gpt2")))
    await settle()
    stage.launcher.gate.open()
    await asyncio.gather(loading, unloading, return_exceptions=True)
    assert page(stage).counted("model_loads_total", "outcome") == {"cancelled": 1.0}


async def test_the_end_of_the_server_is_a_reason_too(stage):
    await stage.load("gpt2")
    await stage.lifecycle.drain()
    assert page(stage).counted("model_unloads_total", "reason") == {"shutdown": 1.0}

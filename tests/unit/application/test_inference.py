from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from fakes import settle
from inferapi.application.inference import Answered
from inferapi.domain.errors import ContextWindowExceeded, OutOfMemory, QueueFull
from inferapi.domain.generation import Chunk, FinishReason, Prompt, SamplingParams

GREEDY = SamplingParams(temperature=0.0)


async def collect(stage, text: str = "Hi you", sampling: SamplingParams = GREEDY) -> list[Chunk | Answered]:
    async with aclosing(stage.inference.infer(Prompt(text=text), sampling)) as items:
        return [item async for item in items]


async def test_an_answer_comes_in_pieces_and_then_whole(stage):
    await stage.load()
    items = await collect(stage)
    *chunks, last = items
    assert [chunk.text for chunk in chunks] == ["Hello", " there"]
    assert isinstance(last, Answered)
    assert (last.text, last.model) == ("Hello there", "gpt2")
    assert last.finish.reason is FinishReason.STOP
    assert (last.finish.usage.prompt_tokens, last.finish.usage.completion_tokens) == (2, 2)


async def test_a_piece_without_text_is_left_out(make_stage):
    stage = await make_stage("", "Hel", "", "lo", "")
    await stage.load()
    items = await collect(stage)
    assert [item.text for item in items] == ["Hel", "lo", "Hello"]
    assert isinstance(items[-1], Answered)


async def test_the_engine_is_told_the_prompt_the_deadline_and_the_affinity(make_stage):
    stage = await make_stage(request_timeout_s=120.0)
    await stage.load()
    prompt, now_s = Prompt(text="Hi"), stage.clock.monotonic_s()
    async with aclosing(stage.inference.infer(prompt, GREEDY, affinity="s1")) as items:
        [item async for item in items]
    (request,) = stage.engine.requests
    assert (request.prompt, request.sampling, request.affinity) == (prompt, GREEDY, "s1")
    assert (request.arrived_s, request.deadline_s) == (now_s, now_s + 120.0)


async def test_the_deadline_counts_the_wait_for_the_model(make_stage):
    stage = await make_stage(request_timeout_s=120.0, inactivity_threshold_s=10)
    await stage.load()
    await stage.clock.advance(10)
    stage.launcher.gate.hold()
    arrived_s = stage.clock.monotonic_s()
    request = asyncio.create_task(stage.infer())
    await stage.clock.advance(50)
    stage.launcher.gate.open()
    await request
    assert stage.engine.requests[0].deadline_s == arrived_s + 120.0


async def test_closing_it_early_stops_the_work_and_gives_the_model_back(stage):
    await stage.load()
    async with aclosing(stage.inference.infer(Prompt(text="Hi"), GREEDY)) as items:
        first = await anext(items)
        assert stage.engine.in_flight == 1
    assert first == Chunk("Hello", completion_tokens=1)
    assert (stage.engine.in_flight, stage.engine.cancelled) == (0, 1)
    assert [line.in_flight for line in stage.lifecycle.status()] == [0]


async def test_cancelling_it_stops_the_work(stage):
    await stage.load()
    request = await stage.infer_until_held()
    request.cancel()
    await settle()
    assert (request.cancelled(), stage.engine.in_flight, stage.engine.cancelled) == (True, 0, 1)


async def test_an_error_of_the_engine_is_the_error_of_the_request_and_the_model_goes_on(stage):
    await stage.load()
    stage.engine.fail_with = OutOfMemory()
    with pytest.raises(OutOfMemory):
        await collect(stage)
    stage.engine.fail_with = None
    assert (await stage.infer()).text == "Hello there"
    assert len(stage.launcher.launched) == 1


async def test_a_prompt_that_does_not_fit_is_refused_with_the_counts(stage):
    await stage.load()
    with pytest.raises(ContextWindowExceeded) as caught:
        await collect(stage, "word " * 1000)
    assert caught.value.facts == {"prompt_tokens": 1000, "max_new_tokens": 100, "context_window_tokens": 1024}


async def test_a_full_queue_is_the_error_of_the_newest_request_alone(make_stage):
    stage = await make_stage(max_batch=1, max_queue=1)
    await stage.load()
    running = await stage.infer_until_held()
    queued = asyncio.create_task(stage.infer())
    await settle()
    with pytest.raises(QueueFull):
        await stage.infer()
    stage.engine.gate.open()
    assert [answered.text for answered in await asyncio.gather(running, queued)] == ["Hello there"] * 2


async def test_the_engine_is_told_whose_request_it_is(stage):
    await stage.load()
    for owner in ("ann", ""):
        async with aclosing(stage.inference.infer(Prompt(text="Hi"), GREEDY, owner=owner)) as items:
            [item async for item in items]
    assert [request.salt for request in stage.engine.requests] == ["ann", ""]

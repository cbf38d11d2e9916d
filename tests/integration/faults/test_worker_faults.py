"""Workers that die or stop: requests are told, the next launch works, and nothing is left behind."""

import asyncio
import logging
import os
import signal
import time
from contextlib import aclosing

import psutil
import pytest
from live_server import TINY, has_ended
from worker_processes import HEARTBEAT_TIMEOUT_S, PATIENCE_S, answers, fork_server, worker

from contracts import ask, ask_for_long, listen, unheard, until
from inferapi.domain.errors import ModelCrashed
from inferapi.domain.states import ModelState

pytestmark = pytest.mark.model  # the tiny model speaks its tokens

# A fork server takes seconds to import torch: the tests of this module share one, and so one event loop.
shared = pytest.mark.asyncio(loop_scope="module")


# It dies


@shared
@pytest.mark.parametrize("stage", [ModelState.LOADING, ModelState.WARMING])
async def test_a_worker_killed_while_it_loads_crashed_and_the_next_launch_works(launcher, tiny_spec, stage):
    def kill(reported, _done_bytes, _total_bytes):
        if reported is stage:
            os.kill(worker().pid, signal.SIGSTOP)  # what it has sent already shall not make it ready
            os.kill(worker().pid, signal.SIGKILL)

    with pytest.raises(ModelCrashed, match=TINY):
        await asyncio.wait_for(launcher.launch(tiny_spec, kill), PATIENCE_S)
    assert fork_server().children() == []
    assert await answers(launcher, tiny_spec)


@shared
async def test_a_fork_server_killed_while_a_worker_loads_takes_it_along_and_another_is_started(launcher, tiny_spec):
    await launcher.start()
    old = fork_server()

    def kill(_stage, _done_bytes, _total_bytes):
        for process in (*old.children(), old):
            os.kill(process.pid, signal.SIGSTOP)
        os.kill(old.pid, signal.SIGKILL)

    with pytest.raises(ModelCrashed, match=TINY):
        await asyncio.wait_for(launcher.launch(tiny_spec, kill), PATIENCE_S)
    assert has_ended(old)
    assert await answers(launcher, tiny_spec)
    assert fork_server() != old


@shared
async def test_a_fork_server_killed_while_nothing_loads_is_replaced_by_the_next_launch(launcher, tiny_spec):
    await launcher.start()
    old = fork_server()
    os.kill(old.pid, signal.SIGKILL)
    await until(lambda: has_ended(old))
    assert await asyncio.wait_for(answers(launcher, tiny_spec), PATIENCE_S)
    assert fork_server() != old


@shared
async def test_an_idle_engine_whose_worker_is_killed_is_closed_without_being_asked(launcher, tiny_spec, engine):
    os.kill(worker().pid, signal.SIGKILL)
    await asyncio.wait_for(engine.wait_closed(), PATIENCE_S)
    with pytest.raises(ModelCrashed, match=TINY):
        await listen(engine, ask())
    assert await answers(launcher, tiny_spec)


@shared
async def test_all_requests_of_a_killed_worker_are_told_waiting_and_running(launcher, tiny_spec, engine):
    requests = [asyncio.create_task(listen(engine, ask_for_long(engine))) for _ in range(6)]
    await until(lambda: (engine.load.running, engine.load.waiting) == (4, 2))
    os.kill(worker().pid, signal.SIGKILL)
    results = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), PATIENCE_S)
    assert [type(result) for result in results] == [ModelCrashed] * 6
    assert await answers(launcher, tiny_spec)


# It stops


@shared
async def test_a_worker_that_stops_while_it_answers_is_killed_and_its_request_told(launcher, tiny_spec, engine, caplog):
    stopped = worker()
    async with aclosing(engine.generate(ask_for_long(engine))) as chunks:
        await anext(chunks)
        os.kill(stopped.pid, signal.SIGSTOP)
        with pytest.raises(ModelCrashed, match=TINY):
            async for _ in chunks:
                pass
    assert engine.is_closed
    await until(lambda: has_ended(stopped))
    assert "gave no sign of life for 3 s" in caplog.text
    assert await answers(launcher, tiny_spec)


@shared
async def test_a_worker_that_stops_while_it_loads_is_killed_and_the_launch_told(launcher, tiny_spec):
    def stop(_stage, _done_bytes, _total_bytes):
        os.kill(worker().pid, signal.SIGSTOP)

    with pytest.raises(ModelCrashed, match=TINY):
        await asyncio.wait_for(launcher.launch(tiny_spec, stop), PATIENCE_S)
    assert fork_server().children() == []
    assert await answers(launcher, tiny_spec)


@shared
async def test_requests_to_a_stopped_worker_never_make_the_api_wait(launcher, engine):
    long_text = "word " * 200_000
    os.kill(worker().pid, signal.SIGSTOP)
    requests = [asyncio.create_task(listen(engine, ask(long_text))) for _ in range(8)]  # far more than a socket holds
    results = await asyncio.wait_for(asyncio.gather(*requests, return_exceptions=True), PATIENCE_S)
    assert [type(result) for result in results] == [ModelCrashed] * 8


@shared
async def test_a_stopped_worker_can_be_closed(launcher, engine):
    stopped = worker()
    os.kill(stopped.pid, signal.SIGSTOP)
    await asyncio.wait_for(engine.aclose(), PATIENCE_S)
    assert has_ended(stopped)


@shared
async def test_an_idle_worker_is_left_alone_for_longer_than_the_timeout(engine, caplog):
    caplog.set_level(logging.ERROR)
    await asyncio.sleep(HEARTBEAT_TIMEOUT_S * 1.5)  # that nothing happens takes its time
    assert not engine.is_closed
    assert (await listen(engine, ask()))[-1].finish is not None
    assert caplog.text == ""


@shared
async def test_a_standstill_of_the_api_is_not_held_against_its_worker(engine, caplog):
    caplog.set_level(logging.ERROR)
    async with aclosing(engine.generate(ask_for_long(engine))) as chunks:
        await anext(chunks)
        time.sleep(HEARTBEAT_TIMEOUT_S * 1.5)  # noqa: ASYNC251 - the event loop stands still: that is the test
        rest = [chunk async for chunk in chunks]
    assert rest[-1].finish is not None
    assert caplog.text == ""


# It leaves nothing behind


@shared
async def test_loads_and_ends_leave_no_descriptor_and_no_thread_behind(launcher, tiny_spec):
    assert await answers(launcher, tiny_spec)
    processes = (psutil.Process(), fork_server())

    def held():
        return [(process.num_fds(), process.num_threads()) for process in processes]

    before = held()
    for _ in range(2):
        assert await answers(launcher, tiny_spec)
        with pytest.raises(ModelCrashed):
            await launcher.launch(tiny_spec, lambda *_: os.kill(worker().pid, signal.SIGKILL))
        crashing = await launcher.launch(tiny_spec, unheard)
        os.kill(worker().pid, signal.SIGKILL)
        await asyncio.wait_for(crashing.wait_closed(), PATIENCE_S)
        await crashing.aclose()
        cancelled = asyncio.create_task(launcher.launch(tiny_spec, unheard))
        await until(lambda: bool(fork_server().children()))
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
    await until(lambda: held() == before)
    assert fork_server().children() == []

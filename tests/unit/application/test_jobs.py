from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import FakeClock, settle
from inferapi.application.jobs import Jobs, LoadJob
from inferapi.application.policy import ModelKey
from inferapi.application.residents import IllegalTransitionError, checked
from inferapi.domain.errors import HubTimeout, LoadStalled
from inferapi.domain.model import LoadOptions, ModelRef
from inferapi.domain.states import TRANSITIONS, LoadProgress, ModelState

S = ModelState


@pytest.fixture
def clock():
    return FakeClock()


def make_job(clock: FakeClock, *stages: ModelState, name: str = "gpt2", load_s: float | None = None) -> LoadJob:
    job = LoadJob(ModelKey(ModelRef(name), LoadOptions()), clock, explicit=True, load_s=load_s)
    for stage in stages:
        job.enter(stage)
    return job


TO_DOWNLOAD = (S.RESOLVING, S.DOWNLOADING)
TO_LOAD = (*TO_DOWNLOAD, S.ADMITTING, S.LOADING)


@given(before=st.sampled_from(S), after=st.sampled_from(S))
def test_a_state_follows_another_only_as_the_law_says(before, after):
    if after in TRANSITIONS[before]:
        assert checked(before, after) is after
    else:
        with pytest.raises(IllegalTransitionError):
            checked(before, after)


def test_every_state_has_its_law_and_can_be_left_and_reached():
    assert set(TRANSITIONS) == set(S)
    assert all(TRANSITIONS.values())
    assert set().union(*TRANSITIONS.values()) == set(S)


def test_a_job_refuses_a_stage_that_cannot_follow(clock):
    job = make_job(clock, S.RESOLVING)
    with pytest.raises(IllegalTransitionError):
        job.enter(S.LOADING)
    assert job.state is S.RESOLVING


def test_a_listener_hears_where_it_is_and_every_step_from_there(clock):
    job = make_job(clock, *TO_DOWNLOAD)
    heard: list[LoadProgress] = []
    job.listen(heard.append)
    job.tell(S.DOWNLOADING, 5, 10)
    job.enter(S.ADMITTING)
    assert [(step.stage, step.done_bytes, step.total_bytes) for step in heard] == [
        (S.DOWNLOADING, 0, 0),
        (S.DOWNLOADING, 5, 10),
        (S.ADMITTING, 0, 0),
    ]


def test_whoever_stops_listening_hears_no_more_and_others_do(clock):
    job = make_job(clock, S.RESOLVING)
    left: list[LoadProgress] = []
    stayed: list[LoadProgress] = []
    stop = job.listen(left.append)
    job.listen(stayed.append)
    stop()
    job.enter(S.DOWNLOADING)
    assert ([step.stage for step in left], [step.stage for step in stayed]) == (
        [S.RESOLVING],
        [S.RESOLVING, S.DOWNLOADING],
    )


def test_late_reports_of_an_earlier_stage_and_of_the_same_bytes_are_not_heard(clock):
    job = make_job(clock, *TO_LOAD)
    heard: list[LoadProgress] = []
    job.listen(heard.append)
    job.tell(S.DOWNLOADING, 9, 10)
    job.tell(S.LOADING, 3, 10)
    job.tell(S.LOADING, 3, 10)
    assert [(step.stage, step.done_bytes) for step in heard] == [(S.LOADING, 0), (S.LOADING, 3)]


def test_a_report_of_warming_ends_the_loading(clock):
    job = make_job(clock, *TO_LOAD)
    job.tell(S.WARMING, 0, 7)
    assert job.state is S.WARMING
    job.tell(S.WARMING, 1, 7)
    assert (job.progress().done_bytes, job.progress().total_bytes) == (1, 7)


async def test_the_time_of_a_load_counts_from_when_it_was_asked_for_first(clock):
    job = make_job(clock)
    await clock.advance(3)
    job.enter(S.RESOLVING)
    await clock.advance(4)
    assert job.progress().elapsed_s == 7


async def test_nothing_is_expected_while_nothing_is_known(clock):
    job = make_job(clock, *TO_DOWNLOAD)
    assert job.progress().expected_s is None


async def test_a_download_is_expected_to_go_on_as_it_goes(clock):
    job = make_job(clock, *TO_DOWNLOAD)
    await clock.advance(10)
    job.tell(S.DOWNLOADING, 25, 100)
    assert job.progress().expected_s == 40


async def test_a_load_is_expected_to_take_as_long_as_the_last_one_did(clock):
    job = make_job(clock, *TO_DOWNLOAD, load_s=8.0)
    await clock.advance(2)
    job.enter(S.ADMITTING)
    job.enter(S.LOADING)
    await clock.advance(3)
    assert job.progress().expected_s == 10.0


async def never() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("stages", [(S.RESOLVING,), TO_DOWNLOAD])
async def test_a_hub_that_says_nothing_for_too_long_is_given_up(clock, stages):
    job = make_job(clock, *stages)
    work = asyncio.create_task(job.unless_stalled(never(), 30.0))
    await clock.advance(29)
    assert not work.done()
    await clock.advance(1)
    with pytest.raises(HubTimeout) as caught:
        await work
    assert caught.value.facts == {"model": "gpt2"}


@pytest.mark.parametrize(("stages", "told"), [(TO_LOAD, "loading"), ((*TO_LOAD, S.WARMING), "warming")])
async def test_a_worker_that_makes_no_progress_for_too_long_is_given_up(clock, stages, told):
    job = make_job(clock, *stages)
    work = asyncio.create_task(job.unless_stalled(never(), 30.0))
    await clock.advance(30)
    with pytest.raises(LoadStalled) as caught:
        await work
    assert caught.value.facts == {"model": "gpt2", "timeout_s": 30.0, "stage": told}


async def test_bytes_keep_a_load_alive_and_the_same_bytes_do_not(clock):
    job = make_job(clock, *TO_LOAD)
    work = asyncio.create_task(job.unless_stalled(never(), 30.0))
    for done_bytes in range(1, 5):
        await clock.advance(25)
        job.tell(S.LOADING, done_bytes, 10)
    assert not work.done()
    await clock.advance(25)
    job.tell(S.LOADING, 4, 10)
    await clock.advance(5)
    with pytest.raises(LoadStalled):
        await work


async def test_work_that_is_given_up_has_cleaned_up_before_anybody_goes_on(clock):
    job = make_job(clock, *TO_LOAD)
    cleaning, cleaned = asyncio.Event(), []

    async def work() -> None:
        try:
            await never()
        finally:
            await cleaning.wait()
            cleaned.append("all of it")

    task = asyncio.create_task(job.unless_stalled(work(), 30.0))
    await clock.advance(31)
    assert not task.done()
    cleaning.set()
    with pytest.raises(LoadStalled):
        await task
    assert cleaned == ["all of it"]


async def test_the_result_and_the_error_of_the_work_come_through(clock):
    async def works() -> int:
        return 5

    async def fails() -> int:
        raise ZeroDivisionError

    job = make_job(clock, S.RESOLVING)
    assert await job.unless_stalled(works(), 30.0) == 5
    with pytest.raises(ZeroDivisionError):
        await job.unless_stalled(fails(), 30.0)


async def test_a_job_is_cancelled_once(clock):
    job = make_job(clock)
    cancels = []

    async def work() -> None:
        for _ in range(3):
            try:
                await never()
            except asyncio.CancelledError:
                cancels.append("cancelled")

    job.task = asyncio.create_task(work())
    await settle()
    for _ in range(2):
        job.cancel()
        await settle()
    assert (cancels, job.is_over) == (["cancelled"], True)
    job.task.cancel()
    await settle()
    job.task.cancel()
    await settle()


def test_jobs_are_found_by_what_they_load_and_told_in_order(clock):
    jobs = Jobs()
    first, second = make_job(clock, name="gpt2"), make_job(clock, name="other")
    jobs.add(first)
    jobs.add(second)
    assert list(jobs) == [first, second]
    assert (jobs.find(first.key), jobs.find(None)) == (first, None)
    with pytest.raises(AssertionError):
        jobs.add(make_job(clock, name="gpt2"))


def test_a_job_that_ended_gives_its_turn_back_and_no_other_jobs(clock):
    jobs = Jobs()
    first, second = make_job(clock, name="gpt2"), make_job(clock, name="other")
    jobs.add(first)
    jobs.add(second)
    jobs.in_turn = first
    jobs.discard(second)
    assert jobs.in_turn is first
    jobs.discard(first)
    assert (jobs.in_turn, list(jobs)) == (None, [])

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakes import FakeClock
from inferapi.application.failures import Failures
from inferapi.application.policy import ModelKey
from inferapi.domain.errors import HubUnavailable, ModelNotFound
from inferapi.domain.model import LoadOptions, ModelRef

NOT_FOUND, UNREACHABLE = ModelNotFound(model="gpt2"), HubUnavailable(model="gpt2")


def key(name: str = "gpt2") -> ModelKey:
    return ModelKey(ModelRef(name), LoadOptions())


def told(failures: Failures, which: ModelKey) -> str | None:
    """What a request is told; each gets an error of its own."""
    error = failures.standing(which)
    return error and error.message


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def failures(clock):
    return Failures(clock)


def test_what_never_failed_stands_in_nobodys_way(failures):
    assert failures.standing(key()) is None
    assert key() not in failures


def test_after_one_failure_the_next_request_may_try_at_once(failures):
    failures.note(key(), NOT_FOUND)
    assert failures.standing(key()) is None
    assert key() in failures


async def test_after_the_second_failure_in_a_row_there_is_a_pause_of_one_second(failures, clock):
    failures.note(key(), NOT_FOUND)
    failures.note(key(), UNREACHABLE)
    assert told(failures, key()) == UNREACHABLE.message
    await clock.advance(0.9)
    assert told(failures, key()) == UNREACHABLE.message
    await clock.advance(0.1)
    assert failures.standing(key()) is None


@pytest.mark.parametrize(
    ("in_a_row", "pause_s"), [(3, 2), (4, 4), (5, 8), (7, 32), (8, 60), (9, 60), (100, 60), (2000, 60)]
)
async def test_the_pause_doubles_up_to_a_minute(failures, clock, in_a_row, pause_s):
    for _ in range(in_a_row):
        failures.note(key(), NOT_FOUND)
    await clock.advance(pause_s - 0.5)
    assert told(failures, key()) == NOT_FOUND.message
    await clock.advance(0.5)
    assert failures.standing(key()) is None


def test_what_worked_begins_anew(failures):
    for _ in range(5):
        failures.note(key(), NOT_FOUND)
    failures.forget(key())
    assert key() not in failures
    failures.note(key(), NOT_FOUND)
    assert failures.standing(key()) is None


def test_each_model_fails_for_itself(failures):
    for _ in range(2):
        failures.note(key("gpt2"), NOT_FOUND)
    assert told(failures, key("gpt2")) == NOT_FOUND.message
    assert failures.standing(key("other")) is None


@given(st.lists(st.integers(0, 999), max_size=600))
def test_names_that_requests_make_up_do_not_fill_the_memory(names):
    failures = Failures(FakeClock())
    for name in names:
        failures.note(key(f"m{name}"), NOT_FOUND)
    kept = [name for name in range(1000) if key(f"m{name}") in failures]
    newest = list(dict.fromkeys(reversed(names)))[:256]
    assert sorted(newest) == kept

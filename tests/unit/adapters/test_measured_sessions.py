"""``MeasuredSessionStore`` does what the store in it does, and tells what fails."""

from __future__ import annotations

import pytest

from fakes import FakeClock, FlakySessionStore
from inferapi.adapters.measured_sessions import MeasuredSessionStore
from inferapi.adapters.memory_sessions import MemorySessionStore
from inferapi.adapters.prometheus_metrics import PrometheusMetrics
from inferapi.domain.errors import (
    HistoryNotSaved,
    InvalidRequest,
    SessionExists,
    SessionProblem,
    SessionStoreUnavailable,
    SessionUnreadable,
)
from metrics_page import MetricsPage
from session_contract import S1, SessionStoreContract, adding, must_begin, write
from session_list_contract import SessionExpiryContract, SessionListContract


class OnMemory:
    @pytest.fixture
    def clock(self):
        return FakeClock()

    @pytest.fixture
    def store(self, clock):
        return MeasuredSessionStore(MemorySessionStore(clock, self.TTL_S), PrometheusMetrics())

    async def pass_time(self, clock, duration_s):
        await clock.advance(duration_s)


class TestMeasuredSessions(OnMemory, SessionStoreContract):
    pass


class TestMeasuredLists(OnMemory, SessionListContract):
    pass


class TestMeasuredExpiry(OnMemory, SessionExpiryContract):
    pass


@pytest.fixture
def metrics():
    return PrometheusMetrics()


@pytest.fixture
def flaky():
    return FlakySessionStore(FakeClock())


@pytest.fixture
def store(flaky, metrics):
    return MeasuredSessionStore(flaky, metrics)


def counted(metrics) -> dict[str, float]:
    return MetricsPage(metrics.page([])).counted("session_store_errors_total", "kind")


async def test_whatever_fails_is_counted_once_and_raised(flaky, store, metrics):
    stored = await write(store, S1, adding(1), 0.0)
    opened = await must_begin(store, S1)
    calls = {
        "begin": lambda: store.begin(S1, "h", 1.0),
        "renew": lambda: store.renew(opened.lease, 1.0),
        "end": lambda: store.end(S1, "h"),
        "commit": lambda: store.commit(opened.lease, stored, adding(2), 0.0),
        "create": lambda: store.create(stored),
        "get": lambda: store.get(S1),
        "delete": lambda: store.delete(S1),
        "page": lambda: store.page("", 10, None),
        "system_prompt": store.system_prompt,
        "set_system_prompt": lambda: store.set_system_prompt("x"),
        "ping": store.ping,
    }
    for number, (name, call) in enumerate(calls.items(), start=1):
        flaky.errors = {name: SessionStoreUnavailable()}
        with pytest.raises(SessionStoreUnavailable):
            await call()
        assert counted(metrics) == {"session_store_unavailable": number}


@pytest.mark.parametrize(
    ("error", "kinds"),
    [
        (SessionUnreadable(problem="no JSON"), {"session_unreadable": 1.0}),
        (HistoryNotSaved(problem="the lease was lost"), {"history_not_saved": 1.0}),
        (SessionExists(), {}),
        (InvalidRequest(problem="cursor"), {}),
    ],
)
async def test_a_refusal_is_no_failure_of_the_store(flaky, store, metrics, error, kinds):
    flaky.errors = {"get": error}
    with pytest.raises((SessionProblem, InvalidRequest)):
        await store.get(S1)
    assert counted(metrics) == kinds

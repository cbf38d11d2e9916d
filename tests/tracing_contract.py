"""What every ``Tracing`` does: a test class inherits it and gives ``tracing``."""

from __future__ import annotations

import re

import pytest

from fakes import FakeEngineLauncher
from inferapi.domain.tracing import Arrival, TraceParent, Tracing

PARENT = TraceParent("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", is_sampled=True)


class TracingContract:
    """Give ``tracing``."""

    @pytest.fixture
    def tracing(self) -> Tracing:
        raise NotImplementedError

    @pytest.mark.parametrize("is_sampled", [True, False])
    def test_a_request_stays_in_the_trace_of_its_caller(self, tracing: Tracing, *, is_sampled: bool) -> None:
        parent = TraceParent(PARENT.trace_id, PARENT.span_id, is_sampled)
        trace = tracing.begin(Arrival("POST", "abc", parent))
        trace.end("/infer", 200)
        assert trace.trace_id == PARENT.trace_id

    def test_a_request_without_a_caller_has_a_trace_of_its_own(self, tracing: Tracing) -> None:
        found = set()
        for _ in range(3):
            trace = tracing.begin(Arrival("POST", "abc"))
            found.add(trace.trace_id)
            trace.end("/infer", 200)
        assert [bool(re.fullmatch("[0-9a-f]{32}", one)) and int(one, 16) > 0 for one in found] == [True] * 3

    def test_a_request_after_another_in_the_same_task_is_not_part_of_it(self, tracing: Tracing) -> None:
        outer = tracing.begin(Arrival("POST", "abc", PARENT))
        inner = tracing.begin(Arrival("POST", "def"))
        inner.end("/infer", 200)
        outer.end("/infer", 200)
        assert inner.trace_id != outer.trace_id

    def test_a_request_may_end_without_route_or_answer(self, tracing: Tracing) -> None:
        tracing.begin(Arrival("_OTHER", "abc")).end(None, None, "no_answer")

    async def test_its_launcher_ends_what_it_was_given(self, tracing: Tracing) -> None:
        launcher = FakeEngineLauncher()
        traced = tracing.engines(launcher)
        await traced.start()
        await traced.aclose()
        assert launcher.is_closed

    async def test_after_aclose_requests_are_told_to_nobody_and_fare_as_before(self, tracing: Tracing) -> None:
        await tracing.aclose()
        await tracing.aclose()
        tracing.begin(Arrival("GET", "abc", PARENT)).end("/status", 200)

"""What everybody who hears what happened does, whatever the names: a class inherits this and gives ``metrics``."""

from __future__ import annotations

import inspect

import pytest

from fakes import make_facts
from inferapi.domain.model import EngineLoad
from inferapi.domain.states import ModelState, ModelStatus
from inferapi.domain.telemetry import FirstToken, LoadOutcome, Metrics, StepTally, Telemetry, UnloadReason
from metrics_page import MetricsPage

ODD_NAMES = ["gpt2", "", "_other", 'a"b', "line\nbreak", "back\\slash", "x" * 10_000, "漢字🙂", '{model="x"} 1', "\x00"]


def hear_everything(metrics: Telemetry, model: str) -> None:
    """Every method once, with every word that it may be told."""
    metrics.engine_stepped(model, StepTally())
    metrics.engine_stepped(model, StepTally(3, 2, 4, (FirstToken(0.0, 0.5),), ((0.0, 1), (1e9, 2))))
    metrics.request_finished(model, "stop", 0.0)
    metrics.request_failed(model, "model_crashed")
    metrics.request_aborted(model)
    metrics.request_rejected("queue_full")
    for outcome in LoadOutcome:
        metrics.load_ended(model, outcome, 1e9)
    for reason in UnloadReason:
        metrics.model_unloaded(model, reason)
    metrics.session_store_failed("session_unreadable")


class MetricsContract:
    """See ``Metrics``."""

    def test_it_hears_what_everybody_tells(self, metrics: Metrics) -> None:
        named = [name for name, _ in inspect.getmembers(Telemetry, inspect.isfunction) if not name.startswith("_")]
        assert len(named) == 8
        for name in named:
            assert inspect.signature(getattr(type(metrics), name)) == inspect.signature(getattr(Telemetry, name))

    @pytest.mark.parametrize("model", ODD_NAMES, ids=range(len(ODD_NAMES)))
    def test_no_name_breaks_it_or_its_page(self, metrics: Metrics, model: str) -> None:
        hear_everything(metrics, model)
        lines = [
            ModelStatus(model, ModelState.READY, 1, 2, facts=make_facts(model), load=EngineLoad(1, 2, 0.5, 7)),
            ModelStatus(model, ModelState.QUEUED, queued=3),
            ModelStatus(model[:-1], ModelState.FAILED),
        ]
        page = metrics.page(lines)
        assert metrics.media_type.startswith("text/plain")
        assert all(family.name.startswith("inferapi_") for family in MetricsPage(page).families)

    def test_reading_changes_nothing(self, metrics: Metrics) -> None:
        hear_everything(metrics, "gpt2")
        assert metrics.page([]) == metrics.page([])

"""What is measured ends up on one page, whoever measures it."""

from __future__ import annotations

import httpx
import pytest

from inferapi.adapters.measured_sessions import MeasuredSessionStore
from inferapi.container import Container, make_metrics
from inferapi.domain.telemetry import StepTally
from inferapi.settings import Settings
from metrics_page import MetricsPage

ALLOWED = ("org/*", "org/plain", "qu?x", "[ab]c")


@pytest.fixture
def settings(tmp_path):
    named = {"model": "org/named@v1", "allowed_models": ALLOWED, "pinned_models": ("org/pinned",)}
    return Settings(device="cpu", models_dir=tmp_path, session_store_url="memory://", **named)


def test_models_that_the_operator_names_have_series_from_the_start(settings):
    page = MetricsPage(make_metrics(settings).page([]))
    assert page.label_values("model") == {"org/named@v1", "org/plain", "org/pinned"}


async def test_everybody_who_measures_writes_on_the_page_that_is_served(settings):
    container = Container(settings=settings)
    app, metrics = container.app(), container.metrics()
    assert container.lifecycle().telemetry is metrics
    assert container.launcher()._telemetry is metrics
    assert isinstance(container.turns()._store, MeasuredSessionStore)
    assert container.sessions()._store is container.turns()._store
    metrics.engine_stepped("org/plain", StepTally(generation_tokens=5))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        page = MetricsPage((await client.get("/metrics")).text)
    assert page.value("generation_tokens_total", model="org/plain") == 5.0

"""What Prometheus and Grafana are told asks for metrics that are there, by labels that they have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from fakes import make_facts
from inferapi.adapters.prometheus_metrics import PrometheusMetrics
from inferapi.domain.model import EngineLoad
from inferapi.domain.states import ModelState, ModelStatus
from inferapi.domain.telemetry import LoadOutcome
from metrics_page import MetricsPage

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
BOARD = json.loads((DEPLOY / "grafana" / "inferapi.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
METRIC = re.compile(r"inferapi_[a-z0-9_]+")


@pytest.fixture(scope="module")
def page() -> MetricsPage:
    metrics = PrometheusMetrics()
    metrics.load_ended("gpt2", LoadOutcome.LOADED, 1.0)
    return MetricsPage(metrics.page([ModelStatus("gpt2", ModelState.READY, facts=make_facts(), load=EngineLoad())]))


@pytest.fixture(scope="module")
def labels(page) -> dict[str, set[str]]:
    """Of every sample, by its name, the names of its labels."""
    samples = [sample for family in page.families for sample in family.samples]
    return {sample.name: set(sample.labels) for sample in samples}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_panel_asks_for_what_is_there(labels, expression):
    names = METRIC.findall(expression)
    assert names
    assert set(names) <= set(labels)
    for names_of_group in re.findall(r"by \(([a-z_, ]+)\)", expression):
        assert set(names_of_group.split(", ")) <= set.union(*(labels[name] for name in names))
    for name in names:
        assert ("$model" in expression) == ("model" in labels[name])


def test_every_family_is_on_the_dashboard(page):
    asked = {re.sub(r"_(bucket|sum|count)$", "", name) for text in EXPRESSIONS for name in METRIC.findall(text)}
    assert asked == {f"inferapi_{name}" for name in page.types}


def test_the_dashboard_takes_the_data_source_that_is_chosen():
    names = {variable["name"] for variable in BOARD["templating"]["list"]}
    assert names == {"datasource", "model"}
    sources = [panel["datasource"] for panel in PANELS] + [
        t["datasource"] for panel in PANELS for t in panel["targets"]
    ]
    assert {source["uid"] for source in sources} == {"${datasource}"}
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


def test_no_two_panels_lie_on_one_another():
    cells = [
        (x, y)
        for panel in BOARD["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_prometheus_asks_for_the_page_with_a_key():
    (job,) = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert job["metrics_path"] == "/metrics"
    assert job["authorization"] == {"type": "Bearer", "credentials_file": "/run/secrets/metrics_key"}
    assert [target for config in job["static_configs"] for target in config["targets"]] == ["api:8000"]

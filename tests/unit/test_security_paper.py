"""SECURITY.md: what it points at is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAPER = (ROOT / "SECURITY.md").read_text(encoding="utf-8")


def promises() -> list[list[str]]:
    table = PAPER.partition("## What is promised")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return rows[1:]


def test_there_are_promises():
    assert len(promises()) > 15


@pytest.mark.parametrize("promise", promises(), ids=lambda promise: promise[0][:40])
def test_every_promise_names_tests_that_exist(promise):
    named = re.findall(r"`(test_\w+\.py)`", promise[2])
    assert named
    assert [name for name in named if not list((ROOT / "tests").rglob(name))] == []


def test_every_link_leads_somewhere():
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", PAPER)} - {""}
    assert len(links) >= 4
    assert [link for link in links if not (ROOT / link).is_file()] == []

"""Markdown of what was counted."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.compare.machine import processor

from .asking import Tally


def where(model: str) -> str:
    """What it was measured on."""
    return f"{model}, {os.cpu_count()} CPU cores ({processor()}), Python {platform.python_version()}."


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A table; all columns but the first are aligned right."""
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]


def outcomes(rows: Mapping[str, Tally]) -> list[str]:
    """What became of requests, one row a kind."""
    head = ("requests", "sent", "answered", "refused", "left", "lost", "unexpected")
    counted = [(name, t.sent, t.answered, told(t.refusals), t.left, t.lost, told(t.wrong)) for name, t in rows.items()]
    return table(head, counted)


def told(counts: Mapping[str, int]) -> str:
    """Counts of things in a cell; 0 where there are none."""
    return ", ".join(f"{count} x {label}" for label, count in counts.items() if count) or "0"


def seconds(value: float) -> str:
    """For people."""
    return f"{value:.2f} s"

"""What a scenario came to, and the server that it ran on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.own_server import Server

from . import report
from .asking import Tally


@dataclass(frozen=True, slots=True)
class Result:
    """A section of the report.

    Attributes:
        failures: what should not have been, for people; empty where all is well.
    """

    title: str
    lines: list[str]
    failures: list[str]

    @property
    def verdict(self) -> str:
        """In a few words."""
        return "; ".join(self.failures) or "as promised"


@contextmanager
def running(folder: Path, **settings: object) -> Iterator[Server]:
    """A server of the scenario's own, ready."""
    server = Server(folder, **{name: str(value) for name, value in settings.items()})
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


def failures_of(**tallies: Tally) -> list[str]:
    """What is wrong with requests of each name."""
    found = []
    for name, tally in tallies.items():
        found += [f"{name}: {tally.lost} lost"] if tally.lost else []
        found += [f"{name}: {report.told(tally.wrong)}"] if tally.wrong else []
    return found


def failures_of_turns(turns: Mapping[str, int]) -> list[str]:
    """What is wrong with stored histories."""
    bad = {what: count for what, count in turns.items() if what != "stored though refused"}
    return [f"stored turns: {report.told(bad)}"] if any(bad.values()) else []

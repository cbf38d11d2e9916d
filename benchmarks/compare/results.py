"""Everything that a run measured, as JSON beside the environments, and medians over its repeats."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .environments import BENCH
from .measure import Measured

FILE = BENCH / "results.json"


@dataclass
class Results:
    """A run.

    Attributes:
        measured: by peer's name, one for each repeat.
        scenarios: of this server alone, by name.
    """

    command: str
    date: str
    processor: str
    cores: int
    memory_bytes: int
    versions: dict[str, str]
    concurrency: list[int]
    new_tokens: int
    repeats: int
    limits: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, list[Measured]] = field(default_factory=dict)
    scenarios: dict[str, Any] = field(default_factory=dict)

    def save(self) -> None:
        """Write it, so that a run that is ended has not been for nothing."""
        FILE.parent.mkdir(parents=True, exist_ok=True)
        FILE.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def load(cls, path: Path = FILE) -> Results:
        """Read what was saved."""
        document = json.loads(path.read_text(encoding="utf-8"))
        document["measured"] = {
            name: [Measured(**one) for one in repeats] for name, repeats in document["measured"].items()
        }
        return cls(**document)

    def median(self, peer: str, what: str, of: str) -> float | None:
        """Of a figure over the repeats, in a round; none where it was never measured."""
        return median(one.rounds.get(what, {}).get(of) for one in self.measured.get(peer, ()))

    def start_s(self, peer: str) -> float | None:
        """Median seconds to the first answer."""
        return median(one.start_s for one in self.measured.get(peer, ()))

    def peak_memory_bytes(self, peer: str) -> float | None:
        """The most of all repeats."""
        return max((one.peak_memory_bytes for one in self.measured.get(peer, ())), default=0) or None

    def missing(self, peer: str) -> str:
        """Why it was not measured, or not wholly."""
        return next((one.missing for one in self.measured.get(peer, ()) if one.missing), "")

    def most_others_cores(self) -> float:
        """Cores that other processes took, in the round where they took most."""
        return max((c for all_ in self.measured.values() for one in all_ for c in one.others_cores.values()), default=0)

    def most_client_cores(self) -> float:
        """Cores that the client itself took, in the round where it took most."""
        return max((c for all_ in self.measured.values() for one in all_ for c in one.client_cores.values()), default=0)


def median(values: Iterable[float | None]) -> float | None:
    """Of those that are there."""
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def ratio(value: float | None, to: float | None) -> float | None:
    """Where both are known."""
    return value / to if value is not None and to else None

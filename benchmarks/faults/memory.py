"""Memory of a server's processes, sampled while it serves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import psutil
from benchmarks.own_server import anonymous_bytes

ALL = "all together"
_ROLES = ("API process", "fork server", "worker")


@dataclass(slots=True)
class Samples:
    """Bytes of each role's process and of all, by seconds since the beginning.

    A role's figure is its resident set. That of all is anonymous memory, shared pages once: resident sets count the
    libraries that the processes share once each.
    """

    processes: Callable[[], Sequence[psutil.Process]]
    started_s: float = field(default_factory=time.monotonic)
    times_s: list[float] = field(default_factory=list)
    bytes_of: dict[str, list[int]] = field(default_factory=dict)

    def take(self) -> None:
        """One sample; a process that ends meanwhile makes it void."""
        try:
            tree = list(self.processes())
            found = {ALL: sum(anonymous_bytes(process.pid) for process in tree)}
            for depth, role in enumerate(_ROLES):
                found[role] = sum(process.memory_info().rss for process in tree if _depth(process, tree) == depth)
        except (psutil.Error, OSError):
            return
        self.times_s.append(time.monotonic() - self.started_s)
        for name, value in found.items():
            self.bytes_of.setdefault(name, []).append(value)

    def since(self, start_s: float) -> tuple[list[float], dict[str, list[int]]]:
        """The times and bytes from then on."""
        first = next((place for place, time_s in enumerate(self.times_s) if time_s >= start_s), len(self.times_s))
        return self.times_s[first:], {name: values[first:] for name, values in self.bytes_of.items()}


def _depth(process: psutil.Process, tree: Sequence[psutil.Process]) -> int:
    """How many parents of it are in the tree: the API process has none, a worker has two."""
    ids = {one.pid for one in tree}
    return sum(parent.pid in ids for parent in process.parents())

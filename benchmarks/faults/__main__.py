"""Put a server in trouble, in every way that this project promises to survive, and count what its clients meet.

    python -m benchmarks.faults [--only crowd,flood] [--write docs/benchmarks/faults.md]

in the project's root. Every scenario has a server of its own on a free loopback port, which is ended with all that it
started. Bounded in requests and time. Ends with status 1 if a request was lost, met a fate that it should not have, or
a stored turn is wrong.
"""

from __future__ import annotations

import argparse
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from benchmarks.own_server import MODEL

from . import report
from .client_scenarios import abandoned, crowded, flooded
from .outage_scenarios import crashed, frozen, killed
from .result import Result

SCENARIOS: dict[str, Callable[[Path], Result]] = {
    "abandoned": abandoned,
    "crowd": crowded,
    "flood": flooded,
    "redis-frozen": frozen,
    "redis-killed": killed,
    "worker-killed": crashed,
}

_OPEN_FILES = 4096


def main() -> int:
    """Run them; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(SCENARIOS), help=f"some of {', '.join(SCENARIOS)}")
    parser.add_argument("--write", type=Path, help="also write the report into this Markdown file")
    arguments = parser.parse_args()
    wanted = [name.strip() for name in arguments.only.split(",") if name.strip()]
    if unknown := sorted(set(wanted) - set(SCENARIOS)):
        parser.error(f"there is no {', '.join(unknown)}")
    signal.signal(signal.SIGTERM, _leave)  # the default action would leave the running server behind
    _allow_open_files()
    results: list[Result] = []
    for name in wanted:
        with tempfile.TemporaryDirectory() as folder:
            results.append(SCENARIOS[name](Path(folder)))
        print(f"{name}: {results[-1].verdict}", file=sys.stderr, flush=True)
    text = "\n".join(_lines(results, _command(arguments, wanted)))
    print(text)
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")
    return 1 if any(result.failures for result in results) else 0


def _command(arguments: argparse.Namespace, wanted: list[str]) -> str:
    some = f" --only {','.join(wanted)}" if wanted != list(SCENARIOS) else ""
    return f"python -m benchmarks.faults{some}" + (f" --write {arguments.write}" if arguments.write else "")


def _lines(results: list[Result], command: str) -> list[str]:
    head = ["# Faults under load", "", "Made by:", "", f"    {command}", "", report.where(MODEL)]
    head += [
        "*Lost* is a request whose connection broke, whose stream had no end, or that got nothing at all. *Unexpected*",
        "is a fate that its scenario does not allow, any other 5xx among them. Both must be 0.",
        "",
    ]
    return head + [line for result in results for line in ("", f"## {result.title}", "", *result.lines)] + [""]


def _allow_open_files() -> None:
    """A thousand connections are a thousand open files, here and in the server, which inherits the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < _OPEN_FILES:
        most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _leave(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())

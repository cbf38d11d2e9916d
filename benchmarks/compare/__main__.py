"""Measure this server and its peers in turn, and write a report.

    python -m benchmarks.compare [--write docs/benchmarks/compare.md]

in the project's root. The first run makes an environment for each peer, which takes an hour; the measuring takes
another one. Every server listens on loopback, and every one is ended before the next begins.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import os
import shlex
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

import psutil

from . import environments, machine, scenarios, sessions
from .environments import Missing
from .limits import Limits, measure_apart
from .measure import Measured, Plan, measure
from .peers import CORES, MOST_AT_ONCE, PEERS, Peer
from .report import report
from .results import FILE, Results


def main() -> None:
    """Run it."""
    arguments = _arguments()
    # The default action would leave the running server behind.
    signal.signal(signal.SIGTERM, _leave)
    if arguments.report_only:
        results = Results.load()
    else:
        _set_up(arguments.peers)
        if arguments.setup_only:
            return
        results = _run(arguments)
    text = report(results)
    print(text)
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")


def _arguments() -> argparse.Namespace:
    names = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, help="also write the report into this Markdown file")
    parser.add_argument("--only", type=_list, default=names, help=f"servers to measure, of {','.join(names)}")
    parser.add_argument("--repeats", type=int, default=3, help="starts of each server")
    parser.add_argument("--concurrency", type=_numbers, default=[1, 8, MOST_AT_ONCE], help="requests at once: 1,8,32")
    parser.add_argument("--new-tokens", type=int, default=64, help="length of every answer")
    parser.add_argument("--no-long-mix", action="store_true", help="leave the long prompts out")
    parser.add_argument("--no-scenarios", action="store_true", help="leave out what only this server is asked for")
    parser.add_argument("--samples", type=int, default=100, help="short requests beside a long prompt, and alone")
    parser.add_argument("--setup-only", action="store_true", help="make the environments, and measure nothing")
    parser.add_argument("--report-only", action="store_true", help=f"the report of the last run, from {FILE.name}")
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - set(names):
        parser.error(f"no such server: {', '.join(sorted(unknown))}")
    arguments.peers = [peer for peer in PEERS if peer.name in arguments.only]
    return arguments


def _set_up(peers: list[Peer]) -> None:
    wanted = [peer.environment for peer in peers]
    for environment in environments.ALL:
        if environment in wanted and not environment.is_ready:
            _say(f"making the environment {environment.name}; its output goes to {environment.log}")
            try:
                environment.make()
            except Missing as problem:
                _say(f"{environment.name}: {problem}")


def _run(arguments: argparse.Namespace) -> Results:
    plan = Plan(arguments.concurrency, arguments.new_tokens, not arguments.no_long_mix)
    results = Results(
        command=shlex.join(["python", "-m", "benchmarks.compare", *sys.argv[1:]]),
        date=dt.datetime.now(tz=dt.UTC).date().isoformat(),
        processor=machine.processor(),
        cores=CORES,
        memory_bytes=psutil.virtual_memory().total,
        versions=machine.versions(),
        concurrency=arguments.concurrency,
        new_tokens=arguments.new_tokens,
        repeats=arguments.repeats,
    )
    for repeat in range(arguments.repeats):
        _say(f"{repeat + 1}/{arguments.repeats} limits of the machine")
        results.limits = asdict(Limits(**results.limits).or_better(measure_apart()))
        for peer in arguments.peers[:: -1 if repeat % 2 else 1]:
            measured = measure(peer, plan, f"repeat {repeat}")
            results.measured.setdefault(peer.name, []).append(measured)
            results.save()
            _say(f"{repeat + 1}/{arguments.repeats} {peer.name}: {_gist(measured)}")
    results.measured = {peer.name: results.measured[peer.name] for peer in arguments.peers}
    if not arguments.no_scenarios:
        _run_scenarios(results, arguments.samples)
    results.save()
    return results


def _run_scenarios(results: Results, samples: int) -> None:
    seed = "scenarios"
    runs = {
        "sessions": sessions.next_turns(results.repeats, seed),
        "short beside long": scenarios.short_beside_long(samples, seed),
        "overhead": scenarios.overhead(results.concurrency, results.new_tokens, results.repeats, seed),
    }
    for name, run in runs.items():
        try:
            results.scenarios[name] = asyncio.run(run)
        except Exception as problem:  # noqa: BLE001 - the rest is worth reporting all the same
            _say(f"{name}: failed: {problem!r}")
        else:
            _say(f"{name}: {results.scenarios[name]}")
        results.save()


def _gist(measured: Measured) -> str:
    speeds = [f"{name}: {figures['tokens_per_s']:.1f} tokens/s" for name, figures in measured.rounds.items()]
    others = f"others took up to {max(measured.others_cores.values(), default=0):.2f} cores"
    start = [] if measured.start_s is None else [f"start {measured.start_s:.1f} s"]
    missing = [f"missing: {measured.missing}"] if measured.missing else []
    return "; ".join([*start, *speeds, f"{measured.peak_memory_bytes / 1e6:.0f} MB", others, *missing])


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in _list(text)]


def _leave(*_: object) -> NoReturn:
    raise SystemExit(128 + signal.SIGTERM)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    os.chdir(environments.ROOT)
    main()

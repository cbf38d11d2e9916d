"""The reports: what was counted is what stands there, and what is wrong makes the run fail."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import httpx
import pytest
from benchmarks.faults import report, soak
from benchmarks.faults.asking import Ask, Tally
from benchmarks.faults.memory import ALL, Samples
from benchmarks.faults.result import Result, failures_of, failures_of_turns


def tally_of(*answers: httpx.Response) -> Tally:
    """One request for each answer, all of them expecting ``queue_full`` at the worst."""
    tally, waiting = Tally(), list(answers)

    async def run() -> None:
        transport = httpx.MockTransport(lambda _: waiting.pop(0))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for _ in answers:
                await tally.ask(client, Ask("/infer", {}, expects=frozenset({"queue_full"})))

    asyncio.run(run())
    return tally


def answered() -> httpx.Response:
    return httpx.Response(200, json={})


def refused(code: str = "queue_full", status: int = 503) -> httpx.Response:
    return httpx.Response(status, json={"code": code}, headers={"Retry-After": "1"})


def test_a_row_has_every_fate():
    lines = report.outcomes({"all": tally_of(answered(), refused(), refused(), refused("internal_error", 500))})
    assert lines[0] == "| requests | sent | answered | refused | left | lost | unexpected |"
    assert lines[2] == (
        "| all | 4 | 1 | 2 x 503 queue_full, 1 x 500 internal_error | 0 | 0 | 1 x /infer 500 internal_error |"
    )


def test_a_scenario_fails_by_what_is_unexpected_or_missing_and_by_nothing_else():
    assert failures_of(requests=tally_of(answered(), refused())) == []
    assert failures_of(requests=tally_of(refused("internal_error", 500))) == ["requests: 1 x /infer 500 internal_error"]
    assert failures_of_turns(Counter({"missing": 0, "stored though refused": 3})) == []
    assert failures_of_turns(Counter({"missing": 2, "doubled": 0})) == ["stored turns: 2 x missing"]
    assert Result("T", [], []).verdict == "as promised"


def test_a_soak_tells_the_memory_of_every_process_and_leaves_the_warming_out():
    samples = Samples(list)
    samples.times_s = [float(second) for second in range(0, 600, 10)]
    warm = [int(1e6 * 100 * min(time_s / 100, 1)) for time_s in samples.times_s]  # grows for 100 s, then stands
    leak = [int(1e6 * time_s) for time_s in samples.times_s]
    samples.bytes_of = {ALL: warm, "worker": leak}
    found = soak.trends(samples, 150.0)
    assert found[ALL].may_be_flat
    assert found[ALL].first == 100
    assert not found["worker"].may_be_flat
    soaked = soak.Soaked(tally_of(answered(), refused("internal_error", 500)), Counter({"x": 2}), samples, 600.0)
    text = "\n".join(soak.lines(soaked, 10, "command"))
    assert "| **unexpected 5xx** | 1 |" in text
    assert "| **lost** | 0 |" in text
    assert "| worker | 45 (45) | 150.0 | 590.0 | +3600.00 |" in text
    assert "| all together | 45 (45) | 100.0 | 100.0 | +0.00 | +0.00 to +0.00 | inside |" in text


def growing(mb_per_h: float, *, noise_mb: float = 0.0, seconds: int = 600) -> Samples:
    """Memory that grows so fast, with a noise that does not hang together."""
    samples, source = Samples(list), random.Random(1)
    samples.times_s = [float(second) for second in range(0, seconds, 5)]
    grown = [mb_per_h * time_s / 3600 + source.gauss(0.0, noise_mb) for time_s in samples.times_s]
    samples.bytes_of = {ALL: [int(1e6 * (500 + value)) for value in grown], "worker": [1] * len(grown)}
    return samples


def soaked_with(tally: Tally, samples: Samples) -> soak.Soaked:
    return soak.Soaked(tally, Counter(), samples, 600.0)


def test_too_short_a_run_tells_nothing_of_memory_and_fails():
    samples = Samples(list)
    samples.times_s, samples.bytes_of = [0.0, 5.0, 10.0], {ALL: [1, 2, 3]}
    assert soak.trends(samples, 0.0) == {}
    assert soak.failures(soaked_with(tally_of(answered()), samples), 10) == ["too few samples of memory for a trend"]


@pytest.mark.parametrize(
    ("samples", "failures"),
    [
        (growing(0), []),
        (growing(-100), []),
        (growing(20), []),  # for sure, but little
        (growing(60, noise_mb=40), []),  # much, but not for sure
        (growing(100), ["memory grows by 100 MB/h"]),
    ],
)
def test_a_soak_fails_where_memory_grows_for_sure_and_by_much(samples, failures):
    soaked = soaked_with(tally_of(answered(), refused()), samples)
    assert soak.failures(soaked, 10) == failures
    text = "\n".join(soak.lines(soaked, 10, "command"))
    assert (f"**Failed**: {failures[0]}." if failures else "**As promised.**") in text


def test_a_soak_fails_by_requests_that_were_lost_unforeseen_or_not_told_when_to_come_again():
    untold = httpx.Response(503, json={"code": "queue_full"})
    tally = tally_of(answered(), untold, refused("internal_error", 500))
    tally.sent += 2
    assert soak.failures(soaked_with(tally, growing(0)), 10) == [
        "2 requests lost",
        "1 requests otherwise not as expected",
        "1 requests refused without `Retry-After`",
    ]


def test_a_failed_soak_ends_with_status_1(monkeypatch, capsys):
    class NoServer:
        def __init__(self, *_: object, **__: object) -> None: ...
        def wait_ready(self) -> None: ...
        def stop(self) -> None: ...

    for samples, status in ((growing(0), 0), (growing(100), 1)):

        async def found(*_: object, samples: Samples = samples) -> soak.Soaked:
            return soaked_with(Tally(), samples)

        monkeypatch.setattr(soak, "Server", NoServer)
        monkeypatch.setattr(soak, "soak", found)
        monkeypatch.setattr("sys.argv", ["soak", "--minutes", "10"])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        assert soak.main() == status
    assert "**Failed**: memory grows by 100 MB/h." in capsys.readouterr().out

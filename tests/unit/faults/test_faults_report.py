"""The reports: what was counted is what stands there, and what is wrong makes the run fail."""

from __future__ import annotations

import asyncio
from collections import Counter

import httpx
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


def test_too_short_a_run_tells_nothing_of_memory():
    samples = Samples(list)
    samples.times_s, samples.bytes_of = [0.0, 5.0, 10.0], {ALL: [1, 2, 3]}
    assert soak.trends(samples, 0.0) == {}

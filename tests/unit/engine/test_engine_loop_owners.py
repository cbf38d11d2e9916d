"""A request that leaves a full queue for another one is told so, and nothing of it is left."""

from __future__ import annotations

import pytest
import torch

from inferapi.domain.errors import QueueFull
from inferapi.domain.generation import SamplingParams
from inferapi.engine.loop import EngineLoop, Output
from inferapi.engine.request import Request
from inferapi.engine.scheduler import Plan, Scheduler

EOS = 2


class EndingRunner:
    """A ``Runner`` whose every request ends at once."""

    def __init__(self) -> None:
        self.released: list[int] = []

    def run(self, plan: Plan) -> torch.Tensor:
        rows = sum(segment.samples for segment in plan.segments)
        logits = torch.zeros(rows, EOS + 1)
        logits[:, EOS] = 9.0
        return logits

    def release(self, request: Request) -> None:
        self.released.append(request.request_id)


def request_of(request_id: int, owner: str) -> Request:
    return Request(request_id, [1], 1, SamplingParams(temperature=0.0), arrived_s=0.0, salt=owner)


@pytest.fixture
def runner() -> EndingRunner:
    return EndingRunner()


@pytest.fixture
def loop(runner: EndingRunner) -> EngineLoop:
    scheduler = Scheduler(max_slots=1, max_waiting=2, step_tokens=8, idle_step_tokens=8, pool=None)
    return EngineLoop(scheduler, runner, decode=lambda ids: "", eos_token_ids=[EOS], now_s=lambda: 1.0)


def test_the_displaced_request_is_refused_and_the_others_are_answered(loop: EngineLoop, runner: EndingRunner) -> None:
    said: list[Output] = []
    for request_id in (1, 2, 3):
        said += loop.submit(request_of(request_id, "flood"))
    assert said == []

    (refused,) = loop.submit(request_of(4, "ann"))

    assert (refused.request_id, type(refused.item)) == (3, QueueFull)
    assert refused.item.facts == {"waiting": 3}
    assert runner.released == [3]
    loop.cancel(3)  # its client hears of it only now
    answered = []
    while not loop.is_idle:
        answered += [output.request_id for output in loop.step()]
    assert answered == [1, 4, 2]


def test_who_has_as_many_waiting_is_refused_itself(loop: EngineLoop) -> None:
    for request_id in (1, 2, 3):
        loop.submit(request_of(request_id, "flood"))
    with pytest.raises(QueueFull):
        loop.submit(request_of(4, "flood"))

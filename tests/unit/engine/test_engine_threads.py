"""The thread governor, on a clock and a waiting time of its own."""

from __future__ import annotations

from inferapi.engine.threads import ThreadGovernor, waited_for_cores_s


class Machine:
    """A clock, and neighbours that want ``cores_wanted`` cores as long as more than ``free`` threads compute."""

    def __init__(self, most: int) -> None:
        self.now_s = self.waited_s = 0.0
        self.free = most
        self.threads = most
        self.history: list[int] = []
        self.governor = ThreadGovernor(
            most, waited_s=lambda: self.waited_s, set_threads=self._set, now_s=lambda: self.now_s
        )

    def _set(self, threads: int) -> None:
        self.threads = threads
        self.history.append(threads)

    def run(self, duration_s: float) -> None:
        for _ in range(round(duration_s / 0.05)):
            self.now_s += 0.05
            self.waited_s += 0.05 * max(self.threads - self.free, 0)
            self.governor.observe()


def test_all_threads_compute_while_nobody_else_wants_the_cores() -> None:
    machine = Machine(4)
    machine.run(30)
    assert machine.history == []


def test_as_many_threads_are_given_up_as_cores_are_wanted() -> None:
    machine = Machine(8)
    machine.free = 5
    machine.run(1)
    assert machine.threads == 5


def test_the_last_thread_is_never_given_up() -> None:
    machine = Machine(2)
    machine.free = 0
    machine.run(1)
    assert machine.threads == 1


def test_threads_come_back_when_the_cores_are_free_again() -> None:
    machine = Machine(2)
    machine.free = 1
    machine.run(1)
    machine.free = 2
    machine.run(5)
    assert machine.threads == 2


def test_a_retry_that_fails_makes_the_next_one_wait_longer() -> None:
    machine = Machine(2)
    machine.free = 1
    machine.run(20)
    retries_soon = machine.history.count(2)
    machine.run(80)
    assert 1 <= retries_soon <= 4
    assert machine.history.count(2) - retries_soon <= retries_soon


def test_what_was_waited_while_idle_is_not_judged() -> None:
    machine = Machine(2)
    machine.run(1)
    machine.now_s += 1
    machine.waited_s += 1  # by other threads of the process
    machine.governor.resume()
    machine.run(1)
    assert machine.history == []


def test_the_kernel_tells_how_long_threads_waited() -> None:
    before_s = waited_for_cores_s()
    assert before_s >= 0
    assert waited_for_cores_s() >= before_s

"""Python code is broken off from another thread, and only the call that was meant."""

from __future__ import annotations

import itertools
import sys
import threading

import pytest

from inferapi.worker.interruption import Interrupted, Interruptible

FAR_S = 1e9


class Watch:
    """A clock that a test sets."""

    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


class Runner:
    """A thread that runs one call; ``result`` waits for what came of it."""

    def __init__(self, interruptible, call, *, name="call", deadline_s=FAR_S):
        self._outcome = []
        self._thread = threading.Thread(target=self._run, args=(interruptible, call, name, deadline_s))
        self._thread.start()

    def _run(self, interruptible, call, name, deadline_s):
        try:
            self._outcome.append(interruptible.run(name, call, deadline_s))
        except Interrupted:
            self._outcome.append("interrupted")

    def result(self):
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self._outcome[0]


def loop_for_ever(started):
    started.set()
    for _ in itertools.count():
        pass


@pytest.fixture
def started():
    return threading.Event()


@pytest.fixture
def untraced():
    """No tracer, such as coverage's: with one, an exception can hit where without it no bytecode lies."""
    tracer, threads_tracer = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    yield
    sys.settrace(tracer)
    threading.settrace(threads_tracer)


@pytest.fixture
def clock():
    return Watch()


def test_a_call_that_ends_by_itself_gives_its_result():
    assert Interruptible().run("call", lambda: 42, FAR_S) == 42


def test_an_error_of_the_call_is_its_own():
    with pytest.raises(ZeroDivisionError):
        Interruptible().run("call", lambda: 1 // 0, FAR_S)


def test_a_loop_ends_when_it_is_interrupted(started):
    interruptible = Interruptible()
    runner = Runner(interruptible, lambda: loop_for_ever(started))
    started.wait(60)
    interruptible.interrupt("call")
    assert runner.result() == "interrupted"


def test_an_interrupt_of_another_call_is_not_heard(started):
    interruptible, stop = Interruptible(), threading.Event()

    def wait():
        started.set()
        stop.wait(60)
        return "done"

    runner = Runner(interruptible, wait, name="this")
    started.wait(60)
    interruptible.interrupt("that")
    stop.set()
    assert runner.result() == "done"


def test_a_loop_ends_at_its_deadline_when_somebody_watches(started, clock):
    interruptible = Interruptible(clock)
    runner = Runner(interruptible, lambda: loop_for_ever(started), deadline_s=10.0)
    started.wait(60)
    clock.now_s = 9.0
    assert not interruptible.watch()
    clock.now_s = 10.0
    assert not interruptible.watch()
    assert runner.result() == "interrupted"


def test_a_call_that_swallows_one_interrupt_gets_another_and_then_is_known_to_be_deaf(started, clock):
    interruptible, caught, give_up = Interruptible(clock), threading.Semaphore(0), threading.Event()

    def swallow():
        for _ in range(2):
            try:
                loop_for_ever(started)
            except Interrupted:
                started.clear()
                caught.release()
        give_up.wait(60)
        return "gave up"

    def watch_at(now_s):
        clock.now_s = now_s
        return interruptible.watch()

    runner = Runner(interruptible, swallow, deadline_s=1.0)
    assert started.wait(60)
    verdicts = [watch_at(1.0)]
    assert caught.acquire(timeout=60)
    assert started.wait(60)
    verdicts += [watch_at(2.9), watch_at(3.0)]
    assert caught.acquire(timeout=60)
    verdicts += [watch_at(5.9), watch_at(6.0)]
    give_up.set()
    assert runner.result() == "gave up"
    assert verdicts == [False, False, False, False, True]


def test_nothing_is_watched_while_nothing_runs(clock):
    interruptible = Interruptible(clock)
    interruptible.run("call", lambda: None, deadline_s=1.0)
    clock.now_s = 100.0
    assert not interruptible.watch()
    interruptible.interrupt("call")
    assert interruptible.run("next", lambda: sum(range(1000)), FAR_S) == 499500


@pytest.mark.usefixtures("untraced")
def test_an_interrupt_at_the_end_of_a_call_never_reaches_the_thread_or_the_next_call():
    """The race that matters: thousands of calls that end just as they are interrupted."""
    interruptible, done = Interruptible(), threading.Event()

    def interrupt_always():
        while not done.is_set():
            for number in range(4):
                interruptible.interrupt(number)

    other = threading.Thread(target=interrupt_always)
    other.start()
    outcomes = {"interrupted": 0, "kept": 0}
    try:
        for count in range(20_000):
            try:
                interruptible.run(count % 8, lambda: sum(range(20)), FAR_S)
            except Interrupted:
                assert count % 8 < 4, "it hit a call that nobody interrupted"
                outcomes["interrupted"] += 1
            else:
                outcomes["kept"] += 1
    finally:
        done.set()
        other.join(60)
    assert sum(outcomes.values()) == 20_000
    assert outcomes["kept"] >= 10_000

"""Prompts become requests with their constraints, off the step loop; what cannot be compiled holds nobody up."""

from __future__ import annotations

import json
import threading
import time
from queue import SimpleQueue

import msgspec
import pytest
from llguidance import LLTokenizer

from inferapi.domain.errors import GenerationTimeout, InvalidRequest, OutOfMemory
from inferapi.domain.generation import Constraint, ConstraintKind, GenerationRequest, Prompt, SamplingParams
from inferapi.engine import constraints
from inferapi.engine.constraints import Constrainer
from inferapi.engine.loop import Output
from inferapi.logs import configure_logging
from inferapi.worker.encoding import PromptThread
from inferapi.worker.messages import Generate
from tiny import byte_level_tokenizer

PATIENCE_S = 60


class Encoder:
    """Encodes any prompt to the same tokens."""

    def encode(self, prompt, sampling):
        return [1, 2, 3], 0

    def stop_strings(self, prompt):
        return ()


def tokenizer():
    return LLTokenizer(byte_level_tokenizer().to_str(), eos_token=[0])


def message(request_id, kind=None, definition=""):
    constraint = None if kind is None else Constraint(kind, definition)
    now_s = time.monotonic()
    request = GenerationRequest(Prompt(text="x"), SamplingParams(constraint=constraint), now_s, now_s + 1000.0)
    return Generate(request_id, request)


@pytest.fixture
def results():
    return SimpleQueue()


@pytest.fixture
def started(results):
    """Starts a thread around something that makes the tokenizer for constraints."""

    def start(make_tokenizer=tokenizer):
        thread = PromptThread(Encoder(), Constrainer(make_tokenizer), deliver=results.put, on_end=lambda: None)
        thread.start()
        return thread

    return start


def test_a_request_comes_with_a_matcher_of_its_own(started, results):
    thread = started()
    for number in range(2):
        thread.put(message(number, ConstraintKind.JSON_SCHEMA, '{"type": "integer"}'))
    one, other = (results.get(timeout=PATIENCE_S) for _ in range(2))
    one.matcher.take(byte_level_tokenizer().token_to_id("-"), is_end=False)

    assert (one.request_id, other.request_id) == (0, 1)
    other.matcher.take(byte_level_tokenizer().token_to_id("7"), is_end=False)
    assert not one.matcher.is_complete


def test_a_request_without_a_constraint_needs_no_tokenizer_for_it(started, results):
    def never():
        raise AssertionError

    started(never).put(message(0))

    assert results.get(timeout=PATIENCE_S).matcher is None


def test_a_constraint_that_is_none_is_refused_and_the_next_one_is_taken(started, results):
    thread = started()
    thread.put(message(0, ConstraintKind.JSON_SCHEMA, "{"))
    thread.put(message(1, ConstraintKind.GRAMMAR, 'start: "a"'))

    refused, taken = (results.get(timeout=PATIENCE_S) for _ in range(2))

    assert isinstance(refused, Output)
    assert isinstance(refused.item, InvalidRequest)
    assert taken.matcher is not None


def test_a_line_about_a_prompt_is_its_requests_and_the_next_one_is_not(root_logger, capsys, results):
    class Odd(Encoder):
        def encode(self, prompt, sampling):
            raise ValueError

    configure_logging("info", as_text=False)
    thread = PromptThread(Odd(), Constrainer(tokenizer), deliver=results.put, on_end=lambda: None)
    thread.start()
    thread.put(msgspec.structs.replace(message(0), origin=("mine", "its trace")))
    thread.put(message(1))
    for _ in range(2):
        assert isinstance(results.get(timeout=PATIENCE_S).item, InvalidRequest)

    one, other = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (one["message"], one["request_id"], one["trace_id"]) == (
        "a prompt could not be encoded",
        "mine",
        "its trace",
    )
    assert other.keys() & {"request_id", "trace_id"} == set()


def test_want_of_memory_for_a_constraint_is_told_as_such(started, results):
    def no_memory():
        raise OSError(12, "Cannot allocate memory")

    started(no_memory).put(message(0, ConstraintKind.GRAMMAR, 'start: "a"'))

    assert isinstance(results.get(timeout=PATIENCE_S).item, OutOfMemory)


def test_whoever_leaves_while_a_constraint_is_compiled_waits_no_longer_for_it(started, results, monkeypatch):
    compiling, gate, real = threading.Event(), threading.Event(), constraints.LLMatcher

    def slow(*args, **options):
        compiling.set()
        gate.wait(PATIENCE_S)
        return real(*args, **options)

    monkeypatch.setattr(constraints, "LLMatcher", slow)
    thread = started()
    thread._constrainer._compile_limit_s = PATIENCE_S
    thread.put(message(0, ConstraintKind.GRAMMAR, 'start: "a"'))
    thread.put(message(1))
    assert compiling.wait(PATIENCE_S)

    thread.cancel(0)

    left, free = (results.get(timeout=PATIENCE_S) for _ in range(2))
    gate.set()
    thread.put(message(2, ConstraintKind.GRAMMAR, 'start: "a"'))
    assert isinstance(left.item, GenerationTimeout)
    assert free.request_id == 1
    assert results.get(timeout=PATIENCE_S).matcher is not None

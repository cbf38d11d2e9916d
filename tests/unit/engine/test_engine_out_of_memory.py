"""Want of memory is known by whatever name it comes, and a loop says when it cannot get over it."""

from __future__ import annotations

import errno

import pytest
import torch

from inferapi.domain.errors import ModelInvalid, OutOfMemory
from inferapi.domain.generation import SamplingParams
from inferapi.domain.model import EngineLoad
from inferapi.engine.block_pool import BlockPool
from inferapi.engine.loop import EngineLoop, is_out_of_memory
from inferapi.engine.request import Request
from inferapi.engine.scheduler import Scheduler

NO_PRIMITIVE = RuntimeError("could not create a primitive")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("unable to mmap 4096 bytes from file </models/m>: Cannot allocate memory (12)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("could not create a memory object"),
        RuntimeError("can't start new thread"),
        NO_PRIMITIVE,
    ],
    ids=str,
)
def test_want_of_memory_is_known_by_every_name(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.ENOENT, "No such file or directory"),
        KeyError("memory"),
        ModelInvalid(model="org/memory", problem="it has no weights"),
    ],
    ids=str,
)
def test_other_errors_are_no_want_of_memory(error):
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("link", ["__cause__", "__context__"])
def test_want_of_memory_is_known_behind_the_errors_that_were_made_of_it(link):
    broken, unloadable = ValueError("the tensor is broken"), OSError("unable to load the weights")
    broken.__cause__ = MemoryError()
    setattr(unloadable, link, broken)
    assert is_out_of_memory(unloadable)


def test_errors_that_are_each_others_cause_end_the_search():
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert not is_out_of_memory(one)


class FailingRunner:
    """A ``Runner`` that fails once."""

    def __init__(self, error):
        self._errors = [error]

    def run(self, plan):
        if self._errors:
            raise self._errors.pop()
        return torch.zeros(sum(segment.samples for segment in plan.segments), 8)

    def release(self, request):
        pass


@pytest.mark.parametrize(("error", "is_spoiled"), [(NO_PRIMITIVE, True), (MemoryError(), False)], ids=str)
def test_a_loop_is_spoiled_by_a_kernel_that_found_no_memory_and_by_nothing_else(error, is_spoiled):
    scheduler = Scheduler(max_slots=1, max_waiting=1, step_tokens=8, idle_step_tokens=8, pool=BlockPool(8, 4))
    loop = EngineLoop(scheduler, FailingRunner(error), decode=lambda _: "", eos_token_ids=[0])
    loop.submit(Request(1, [1, 2], 2, SamplingParams(max_new_tokens=1, temperature=0.0), arrived_s=0.0))

    failed = loop.step()

    assert [(output.request_id, type(output.item)) for output in failed] == [(1, OutOfMemory)]
    assert loop.load == EngineLoad()
    assert loop.is_spoiled is is_spoiled

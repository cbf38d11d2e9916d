"""Weights in huge pages: cut without overlaps, begun at cache lines, given back with the last of them."""

import gc
from pathlib import Path

import pytest
import torch

from inferapi.engine.native.calls import Format
from inferapi.engine.native.formats import pack
from inferapi.engine.native.huge_pages import HugePages

MIB = 1024**2


def mapped_bytes() -> int:
    """The address space of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * 4096


def test_tensors_do_not_overlap_and_begin_at_cache_lines() -> None:
    memory = HugePages()
    shapes = [(300_001,), (700, 700), (9 * MIB,), (40 * MIB,), (500_000,)]
    tensors = [memory.empty(shape, dtype=torch.uint8) for shape in shapes]

    for value, tensor in enumerate(tensors):
        tensor.fill_(value)

    assert [tuple(tensor.shape) for tensor in tensors] == shapes
    assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors)
    assert all((tensor == value).all() for value, tensor in enumerate(tensors))


def test_a_tensor_has_the_dtype_that_was_asked_for() -> None:
    tensor = HugePages().empty((512, 512), dtype=torch.bfloat16)

    tensor.fill_(1.5)

    assert tensor.dtype is torch.bfloat16
    assert tensor.sum(dtype=torch.float32).item() == 1.5 * 512 * 512


def test_tensors_of_one_chunk_lie_side_by_side_and_small_ones_are_apart() -> None:
    memory = HugePages()

    first, small, second = (memory.empty((size,), dtype=torch.uint8) for size in (MIB, 1000, MIB))

    assert second.data_ptr() - first.data_ptr() == MIB
    assert not first.data_ptr() <= small.data_ptr() < second.data_ptr() + MIB


def test_memory_goes_back_with_the_last_tensor() -> None:
    memory = HugePages()
    before = mapped_bytes()
    tensor = memory.empty((512 * MIB,), dtype=torch.uint8)
    while_held = mapped_bytes()

    del tensor, memory
    gc.collect()

    assert while_held - before >= 512 * MIB
    assert mapped_bytes() - before < 256 * MIB


@pytest.mark.parametrize("wanted", list(Format))
def test_a_weight_packed_into_huge_pages_is_the_weight_packed_elsewhere(wanted) -> None:
    weight = torch.randn((1040, 576), generator=torch.Generator().manual_seed(1))

    here, elsewhere = pack(weight, None, wanted, HugePages().empty), pack(weight, None, wanted)

    assert here.numbers.equal(elsewhere.numbers)
    assert here.num_bytes == elsewhere.num_bytes

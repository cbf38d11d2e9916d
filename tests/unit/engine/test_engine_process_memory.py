import mmap

import pytest

from inferapi.domain.model import DeviceKind
from inferapi.engine.process_memory import memory_bytes, most_memory_bytes, private_dirty_bytes

MIB = 1024**2
ROLLUP = """\
55e0c0a00000-7ffd2b5f1000 ---p 00000000 00:00 0                          [rollup]
Rss:              884964 kB
Pss_Dirty:        199999 kB
Shared_Dirty:      41234 kB
Private_Clean:     30000 kB
Private_Dirty:    123456 kB
"""


def test_what_was_written_and_is_shared_with_nobody_is_told_apart():
    assert private_dirty_bytes(ROLLUP) == 123_456 * 1024


@pytest.mark.parametrize("written_mib", [32, 96])
def test_memory_counts_once_it_is_written(written_mib):
    with mmap.mmap(-1, 128 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        before_bytes = memory_bytes(DeviceKind.CPU)
        memory.write(b"x" * MIB * written_mib)
        grown_bytes = memory_bytes(DeviceKind.CPU) - before_bytes

    assert grown_bytes == pytest.approx(written_mib * MIB, abs=8 * MIB)


def test_elsewhere_than_on_a_gpu_the_most_is_what_is_taken_now():
    assert most_memory_bytes(DeviceKind.CPU) == pytest.approx(memory_bytes(DeviceKind.CPU), abs=8 * MIB)

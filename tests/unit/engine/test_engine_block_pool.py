import pytest

from inferapi.engine.block_pool import BlockPool


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (63, 1), (64, 1), (65, 2), (128, 2), (129, 3)])
def test_a_part_of_a_block_counts_as_a_block(tokens: int, blocks: int) -> None:
    assert BlockPool(8, 64).blocks_for(tokens) == blocks


def test_capacity_counts_the_tokens_of_all_blocks() -> None:
    assert BlockPool(5, 64).capacity_tokens == 320


def test_more_than_there_is_cannot_be_reserved() -> None:
    pool = BlockPool(4, 64)

    assert pool.reserve(3)
    assert not pool.reserve(2)
    assert pool.usage_ratio == 0.75  # the refused one promised nothing
    assert pool.reserve(1)
    assert pool.usage_ratio == 1.0


def test_the_lowest_free_block_is_taken_first() -> None:
    pool = BlockPool(4, 64)
    pool.reserve(4)
    taken = [pool.take() for _ in range(4)]

    pool.give_back([taken[2], taken[0]], reserved=2)
    pool.reserve(2)

    assert taken == [0, 1, 2, 3]
    assert [pool.take(), pool.take()] == [0, 2]


def test_giving_back_returns_the_blocks_that_were_reserved_but_never_taken() -> None:
    pool = BlockPool(4, 64)
    pool.reserve(4)
    block = pool.take()

    pool.give_back([block], reserved=4)

    assert pool.usage_ratio == 0.0
    assert pool.reserve(4)
    assert sorted(pool.take() for _ in range(4)) == [0, 1, 2, 3]

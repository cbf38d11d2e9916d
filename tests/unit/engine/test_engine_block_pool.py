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


def keep(pool: BlockPool, *digests: bytes) -> list[int]:
    """A request comes, fills a block for each digest, and goes."""
    pool.reserve(len(digests))
    blocks = [pool.take() for _ in digests]
    pool.give_back(blocks, digests, reserved=len(digests))
    pool.collect_moves()
    return blocks


def held(pool: BlockPool, number: int) -> list[int]:
    """A request comes and stays."""
    assert pool.reserve(number)
    return [pool.take() for _ in range(number)]


def adopted(pool: BlockPool, *digests: bytes) -> list[int]:
    assert pool.reserve(len(digests))
    return pool.adopt(digests)


def test_kept_blocks_are_adopted_where_they_lie() -> None:
    pool = BlockPool(8, 64)
    keep(pool, b"a", b"b", b"c")

    assert adopted(pool, b"a", b"b", b"x") == [0, 1]
    assert (pool.num_held, pool.num_idle) == (2, 1)
    assert pool.collect_moves() == ()


def test_adoption_ends_at_the_first_block_that_is_not_known() -> None:
    pool = BlockPool(8, 64)
    keep(pool, b"a", b"b", b"c")

    assert adopted(pool, b"a", b"x", b"c") == [0]
    assert adopted(pool, b"y") == []


def test_blocks_that_nobody_named_are_not_kept() -> None:
    pool = BlockPool(4, 64)
    pool.reserve(3)
    pool.give_back([pool.take() for _ in range(3)], (b"a",), reserved=3)

    assert (pool.num_held, pool.num_idle) == (0, 1)
    assert adopted(pool, b"a", b"b") == [0]


def test_a_kept_block_makes_way_for_a_held_one() -> None:
    pool = BlockPool(8, 64)
    keep(pool, b"a", b"b")

    assert held(pool, 1) == [0]
    assert pool.collect_moves() == ((0, 7),)
    assert adopted(pool, b"a", b"b") == [2, 1]  # no further away than the blocks that are held
    assert pool.collect_moves() == ((7, 2),)


def test_nothing_is_evicted_while_a_block_is_blank() -> None:
    pool = BlockPool(4, 64)
    keep(pool, b"a", b"b")
    held(pool, 2)

    assert pool.num_idle == 2
    pool.reserve(1)
    pool.take()
    assert pool.num_idle == 1


def test_the_block_used_least_recently_is_evicted_first_and_an_end_before_its_beginning() -> None:
    pool = BlockPool(4, 64)
    keep(pool, b"a", b"b")
    keep(pool, b"c", b"d")
    pool.give_back(adopted(pool, b"a", b"b"), (b"a", b"b"), reserved=2)
    pool.collect_moves()

    (first,) = held(pool, 1)
    assert [pool.adopt([digest]) == [] for digest in (b"d",)] == [True]
    (second,) = held(pool, 1)

    assert (first, second) == (0, 1)
    assert pool.adopt([b"c"]) == []
    assert len(adopted(pool, b"a", b"b")) == 2


def test_a_block_that_another_request_holds_is_copied() -> None:
    pool = BlockPool(6, 64)
    (block,) = held(pool, 1)
    pool.register(block, b"a")

    assert adopted(pool, b"a") == [1]
    assert pool.collect_moves() == ((0, 1),)
    assert pool.num_held == 2


def test_two_blocks_with_the_same_content_are_kept_once() -> None:
    pool = BlockPool(6, 64)
    first, second = held(pool, 1), held(pool, 1)
    pool.register(first[0], b"a")
    pool.register(second[0], b"a")

    pool.give_back(first, (b"a",), reserved=1)
    pool.give_back(second, (b"a",), reserved=1)

    assert (pool.num_held, pool.num_idle) == (0, 1)
    assert adopted(pool, b"a") == [0]


def test_a_copy_outlives_the_block_it_was_made_from() -> None:
    pool = BlockPool(2, 64)
    original = held(pool, 1)
    pool.register(original[0], b"a")
    copy = adopted(pool, b"a")
    pool.give_back(original, (b"a",), reserved=1)
    assert held(pool, 1) == original  # evicts it
    assert pool.num_idle == 0

    pool.give_back(copy, (b"a",), reserved=1)

    assert adopted(pool, b"a") == copy


def test_what_a_copy_was_used_for_counts_as_use_of_the_block_that_is_kept() -> None:
    pool = BlockPool(3, 64)
    original, other = held(pool, 1), held(pool, 1)
    pool.register(original[0], b"a")
    copy = adopted(pool, b"a")
    pool.give_back(original, (b"a",), reserved=1)
    pool.give_back(other, (b"b",), reserved=1)

    pool.give_back(copy, (b"a",), reserved=1)
    held(pool, 2)  # the blank block, and the one that was used least recently

    assert pool.adopt([b"b"]) == []
    assert len(adopted(pool, b"a")) == 1


def test_what_was_moved_and_then_evicted_is_not_copied() -> None:
    pool = BlockPool(2, 64)
    keep(pool, b"a", b"b")

    assert held(pool, 2) == [0, 1]
    assert pool.collect_moves() == ()


def test_what_moves_twice_is_copied_once_from_where_it_was() -> None:
    pool = BlockPool(6, 64)
    assert held(pool, 6) == [0, 1, 2, 3, 4, 5]
    pool.register(0, b"0")
    for block in (2, 1, 3, 4, 5):
        pool.give_back([block], (b"%d" % block,), reserved=1)

    # A copy of 0 takes the place of 1, which moves over 2, the block used least recently; then 5 takes that place.
    assert adopted(pool, b"0", b"5") == [1, 2]
    assert sorted(pool.collect_moves()) == [(0, 1), (1, 5), (5, 2)]


def test_all_that_was_reserved_is_there_however_much_is_kept() -> None:
    pool = BlockPool(4, 64)
    keep(pool, b"a", b"b", b"c", b"d")
    blocks = adopted(pool, b"a", b"b")

    blocks += held(pool, 2)

    assert sorted(blocks) == [0, 1, 2, 3]
    assert (pool.num_held, pool.num_idle, pool.usage_ratio) == (4, 0, 1.0)


def test_blocks_that_change_places_move_at_once() -> None:
    pool = BlockPool(4, 64)
    keep(pool, b"a", b"b", b"c", b"d")

    assert adopted(pool, b"d") == [0]
    assert sorted(pool.collect_moves()) == [(0, 3), (3, 0)]
    assert adopted(pool, b"a") == [1]
    assert sorted(pool.collect_moves()) == [(1, 3), (3, 1)]


def test_after_forgetting_nothing_is_found_and_everything_is_free() -> None:
    pool = BlockPool(4, 64)
    keep(pool, b"a", b"b")
    running = adopted(pool, b"a")

    pool.forget()

    assert (pool.num_held, pool.num_idle) == (1, 0)
    assert adopted(pool, b"b") == []
    pool.give_back(running, (b"a",), reserved=1)  # what its request holds was right all the time
    assert pool.num_idle == 1

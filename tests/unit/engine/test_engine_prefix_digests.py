import pytest

from inferapi.engine.prefix_cache import PrefixCache, block_digest, salt_digest


def test_a_digest_names_the_tokens_all_before_them_and_the_salt() -> None:
    first = block_digest(salt_digest("ann"), [1, 2, 3, 4])

    assert block_digest(salt_digest("ann"), [1, 2, 3, 4]) == first
    different = {
        first,
        block_digest(salt_digest("bob"), [1, 2, 3, 4]),
        block_digest(salt_digest("ann"), [1, 2, 3, 5]),
        block_digest(salt_digest("ann"), [1, 2, 4, 3]),
        block_digest(first, [1, 2, 3, 4]),
        block_digest(salt_digest(""), [1, 2, 3, 4]),
    }
    assert len(different) == 6


def test_no_salt_can_pose_as_a_block() -> None:
    parent = salt_digest("ann")
    tokens = [0x61] * 4  # bytes that are text, should somebody choose them as a salt

    posed = (parent + b"".join(token.to_bytes(8, "little") for token in tokens)).decode("latin-1")

    assert salt_digest(posed) != block_digest(parent, tokens)


def test_tokens_do_not_run_into_each_other() -> None:
    root = salt_digest("")

    assert block_digest(root, [1, 256]) != block_digest(root, [257, 0])
    assert block_digest(root, [2**31, 0]) != block_digest(root, [0, 2**31])


def test_an_idle_block_is_evicted_in_the_order_of_last_use() -> None:
    cache = PrefixCache()
    for block, digest in enumerate((b"a", b"b", b"c")):
        cache.add(digest, block)
        cache.release(block)
    cache.touch(b"a")
    cache.hold(1)

    assert [cache.evict(), cache.evict()] == [2, 0]
    with pytest.raises(KeyError):
        cache.evict()
    assert cache.block(b"b") == 1
    assert cache.block(b"a") is None


def test_a_block_that_moves_keeps_its_turn_to_be_evicted() -> None:
    cache = PrefixCache()
    for block, digest in enumerate((b"a", b"b")):
        cache.add(digest, block)
        cache.release(block)

    cache.exchange(0, 9)

    assert (cache.block(b"a"), cache.knows(0), cache.knows(9)) == (9, False, True)
    assert [cache.evict(), cache.evict()] == [9, 1]


def test_a_digest_that_has_a_block_keeps_it() -> None:
    cache = PrefixCache()
    cache.add(b"a", 3)
    cache.add(b"a", 5)

    assert cache.block(b"a") == 3
    assert not cache.knows(5)

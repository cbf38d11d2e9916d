import pytest
import torch

from inferapi.domain.model import LayerShape
from inferapi.engine.kv_cache import BLOCK_TOKENS, KvCache
from inferapi.engine.request import Request
from inferapi.engine.scheduler import Plan, Segment
from inferapi.engine.step_layout import DecodeView, StepLayout

CPU = torch.device("cpu")


@pytest.fixture
def cache() -> KvCache:
    return KvCache([LayerShape(2, 4, 6), LayerShape(1, 8, 8)], 5, torch.bfloat16, [CPU, CPU])


def decoding(request: Request, blocks: list[int], length: int) -> Segment:
    """The newest of ``length`` tokens, all others computed."""
    request.blocks, request.tokens = blocks, [0] * length
    return Segment(request, length - 1, 1)


def test_every_layer_has_its_own_shape_and_begins_as_zeros(cache: KvCache) -> None:
    assert [tuple(keys.shape) for keys in cache.keys] == [(5, 2, BLOCK_TOKENS, 4), (5, 1, BLOCK_TOKENS, 8)]
    assert [tuple(values.shape) for values in cache.values] == [(5, 2, BLOCK_TOKENS, 6), (5, 1, BLOCK_TOKENS, 8)]
    assert {tensor.dtype for tensor in (*cache.keys, *cache.values)} == {torch.bfloat16}
    assert not any(tensor.any() for tensor in (*cache.keys, *cache.values))


def test_keys_and_values_are_stored_where_they_belong_and_nowhere_else(cache: KvCache) -> None:
    keys, values = torch.full((2, 2, 4), 3.0), torch.full((2, 2, 6), 5.0)

    cache.write(0, keys.bfloat16(), values.bfloat16(), torch.tensor([4, 1]), torch.tensor([7, 0]))

    assert (cache.keys[0][4, :, 7] == 3).all()
    assert (cache.values[0][1, :, 0] == 5).all()
    assert cache.keys[0].count_nonzero() == 2 * 2 * 4
    assert cache.values[0].count_nonzero() == 2 * 2 * 6
    assert not cache.keys[1].any()


def test_blocks_used_before_are_clean_when_they_begin_again(cache: KvCache) -> None:
    cache.clean([0, 1])
    for tensor in (*cache.keys, *cache.values):
        tensor[:2] = float("nan")

    cache.clean([1, 2])

    for tensor in (*cache.keys, *cache.values):
        assert tensor[0].isnan().all()  # of a request that still runs
        assert not tensor[1:].any()


def test_blocks_move_all_at_once_in_every_layer(cache: KvCache) -> None:
    for tensor in (*cache.keys, *cache.values):
        tensor.copy_(torch.arange(5.0).view(5, 1, 1, 1).expand_as(tensor))

    cache.move(((0, 3), (3, 0), (0, 4)))

    for tensor in (*cache.keys, *cache.values):
        assert tensor.amin((1, 2, 3)).tolist() == tensor.amax((1, 2, 3)).tolist() == [3, 1, 2, 0, 0]


def test_a_block_that_something_moved_to_is_cleaned_when_it_begins_again(cache: KvCache) -> None:
    cache.clean([0])
    cache.keys[0][0] = 7.0
    cache.move(((0, 4),))

    cache.clean([4])

    assert (cache.keys[0][0] == 7).all()
    assert not cache.keys[0][4].any()


def test_tokens_are_written_in_order_of_the_plan(new_request) -> None:
    decode = decoding(new_request(0), [3, 1], BLOCK_TOKENS + 2)
    prompt = new_request(1)
    prompt.blocks = [0, 4]

    layout = StepLayout(Plan((decode,), (Segment(prompt, BLOCK_TOKENS - 1, 3),)), CPU, 6)

    assert layout.write_blocks.tolist() == [1, 0, 4, 4]
    assert layout.write_offsets.tolist() == [1, BLOCK_TOKENS - 1, 0, 1]


def visible_tokens(view: DecodeView) -> list[int]:
    return (~view.hidden).sum((1, 2, 3)).tolist()


def test_dense_blocks_are_read_in_place(new_request) -> None:
    segments = (decoding(new_request(0), [0, 2], BLOCK_TOKENS + 10), decoding(new_request(1), [1], 5))

    view = StepLayout(Plan(segments, ()), CPU, 3).decode_view(None)

    assert view.gathered is None
    assert view.owner.tolist() == [0, 1, 0]
    assert visible_tokens(view) == [BLOCK_TOKENS, 5, 10]


def test_sparse_blocks_are_gathered(new_request) -> None:
    segments = (decoding(new_request(0), [30, 7], BLOCK_TOKENS + 10), decoding(new_request(1), [12], 5))

    view = StepLayout(Plan(segments, ()), CPU, 40).decode_view(None)

    assert view.gathered is not None
    assert view.gathered.tolist() == [30, 7, 12]
    assert view.owner.tolist() == [0, 0, 1]
    assert visible_tokens(view) == [BLOCK_TOKENS, 10, 5]


def test_gathered_blocks_are_filled_up_with_blocks_of_nobody(new_request) -> None:
    blocks = list(range(0, 80, 4))

    view = StepLayout(Plan((decoding(new_request(0), blocks, 20 * BLOCK_TOKENS),), ()), CPU, 100).decode_view(None)

    assert view.gathered is not None
    assert view.gathered.tolist() == blocks + 4 * [0]
    assert view.owner.tolist() == 20 * [0] + 4 * [1]
    assert visible_tokens(view) == 20 * [BLOCK_TOKENS] + 4 * [0]


def test_blocks_of_nobody_are_hidden(new_request) -> None:
    view = StepLayout(Plan((decoding(new_request(0), [1, 3], 70),), ()), CPU, 4).decode_view(None)

    assert view.num_blocks == 4
    assert view.owner.tolist() == [1, 0, 1, 0]
    assert visible_tokens(view) == [0, BLOCK_TOKENS, 0, 6]


@pytest.mark.parametrize(("last", "pool_blocks", "viewed"), [(15, 40, 16), (16, 40, 24), (16, 20, 20), (23, 40, 24)])
def test_a_view_of_many_blocks_is_rounded_up_to_blocks_that_the_pool_has(
    new_request, last: int, pool_blocks: int, viewed: int
) -> None:
    blocks = list(range(last + 1))
    segment = decoding(new_request(0), blocks, (last + 1) * BLOCK_TOKENS)

    view = StepLayout(Plan((segment,), ()), CPU, pool_blocks).decode_view(None)

    assert view.num_blocks == viewed
    assert visible_tokens(view) == len(blocks) * [BLOCK_TOKENS] + (viewed - len(blocks)) * [0]
    assert view.owner.tolist() == len(blocks) * [0] + (viewed - len(blocks)) * [1]


@pytest.mark.parametrize("apart", [1, 30], ids=["in place", "gathered"])
def test_views_of_any_number_of_blocks_come_in_few_sizes(new_request, apart: int) -> None:
    sizes = set()
    for held in range(1, 101):
        segment = decoding(new_request(0), [apart * index for index in range(held)], held * BLOCK_TOKENS)
        sizes.add(StepLayout(Plan((segment,), ()), CPU, 3000).decode_view(None).num_blocks)

    assert {size for size in sizes if size > 16} == set(range(24, 105, 8))


def test_blocks_before_a_window_are_left_out(new_request) -> None:
    layout = StepLayout(Plan((decoding(new_request(0), [0, 1, 2], 2 * BLOCK_TOKENS + 10),), ()), CPU, 3)

    view = layout.decode_view(20)

    visible = (~view.hidden)[:, 0, 0]
    assert visible.sum(1).tolist() == [0, 10, 10]
    assert visible[1].nonzero()[:, 0].tolist() == list(range(BLOCK_TOKENS - 10, BLOCK_TOKENS))
    assert layout.decode_view(None).hidden.sum() == 3 * BLOCK_TOKENS - (2 * BLOCK_TOKENS + 10)

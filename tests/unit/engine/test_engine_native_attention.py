"""Paged attention of the native kernels against plain attention in float32."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inferapi.domain.model import LayerShape
from inferapi.engine.kv_cache import BLOCK_TOKENS
from inferapi.engine.native.attention import can_attend
from paged_conversation import MOST_TOKENS, Conversation


@pytest.mark.parametrize("group", range(1, 10))
@pytest.mark.parametrize("dims", [(16, 16), (64, 64), (96, 128), (256, 256), (18, 48)])
def test_prompts_and_decodes_of_several_requests_see_their_own_tokens(
    compiled, group: int, dims: tuple[int, int]
) -> None:
    conversation = Conversation(compiled, LayerShape(2, *dims, None), group, seed=group)

    conversation.step([(0, 1), (1, 7)])
    conversation.step([(0, 1), (1, 1), (2, 65)])
    conversation.step([(2, 1), (0, 1), (1, 1)])
    conversation.step([(1, 1), (0, 130), (2, 3)])
    conversation.step([(2, 1), (1, 1), (0, 1), (3, 1)])


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 31, 32, 33, 48, 49, 63, 64, 65, 127, 128, 129, 192, 193])
@pytest.mark.parametrize("group", [1, 3])
def test_lengths_at_the_borders_of_panels_and_blocks_are_nothing_special(compiled, length: int, group: int) -> None:
    conversation = Conversation(compiled, LayerShape(3, 32, 32, None), group, seed=length)

    conversation.step([(0, length)])
    conversation.step([(0, 1)])
    conversation.step([(0, 1), (1, length)])
    conversation.step([(1, 2), (0, 2)])


@pytest.mark.parametrize("window", [1, 2, 15, 16, 17, 63, 64, 65, 100, 1000])
@pytest.mark.parametrize("group", [1, 2, 5])
def test_a_window_hides_what_is_further_back(compiled, window: int, group: int) -> None:
    conversation = Conversation(compiled, LayerShape(2, 32, 32, window), group, seed=window)

    conversation.step([(0, 150), (1, 3)])
    conversation.step([(0, 1), (1, 1)])
    conversation.step([(0, 70), (1, 64)])
    conversation.step([(1, 1), (0, 1)])


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_steps_of_any_requests_come_to_plain_attention(compiled, data: st.DataObject) -> None:
    layer = LayerShape(
        data.draw(st.integers(1, 4), "heads"),
        2 * data.draw(st.integers(1, 64), "half of the key dim"),
        16 * data.draw(st.integers(1, 8), "sixteenth of the value dim"),
        data.draw(st.none() | st.integers(1, 200), "window"),
    )
    group = data.draw(st.integers(1, 9) | st.sampled_from([16, 25, 48]), "group")
    threads = data.draw(st.sampled_from([1, 2, 4]), "threads")
    conversation = Conversation(compiled, layer, group, threads=threads)
    room = [MOST_TOKENS // BLOCK_TOKENS * BLOCK_TOKENS] * 4

    for _ in range(data.draw(st.integers(1, 5), "steps")):
        lengths = []
        for number in data.draw(st.permutations(range(4)), "order")[: data.draw(st.integers(1, 4), "requests")]:
            length = data.draw(st.sampled_from([1, 1, 1, 2, 3, 31, 63, 64, 65, 100]), "length")
            if length <= room[number]:
                room[number] -= length
                lengths.append((number, length))
        if lengths:
            conversation.step(lengths)


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize("group", [1, 3, 9])
def test_a_prompt_is_the_same_to_the_bit_whole_in_chunks_and_token_by_token(
    compiled, window: int | None, group: int
) -> None:
    layer = LayerShape(2, 32, 32, window)
    whole = Conversation(compiled, layer, group)
    projected = whole.draw(140)
    expected = whole.step([(0, 140)], projected)

    for chunks in ([1] * 140, [3, 60, 1, 64, 12], [139, 1], [64, 64, 12]):
        conversation = Conversation(compiled, layer, group, seed=1)
        parts = [conversation.step([(0, len(chunk))], chunk) for chunk in projected.split(chunks)]
        assert torch.equal(torch.cat(parts), expected), chunks


def test_an_answer_is_the_same_to_the_bit_alone_among_others_and_by_many_threads(compiled) -> None:
    layer = LayerShape(3, 64, 64, None)
    alone = Conversation(compiled, layer, 3)
    projected = alone.draw(91)
    parts = projected.split([90, 1])
    expected = torch.cat([alone.step([(0, len(part))], part) for part in parts])

    for threads in (1, 2, 4):
        many = Conversation(compiled, layer, 3, threads=threads, seed=threads)
        first = many.step([(1, 30), (0, 90), (2, 70)], torch.cat([many.draw(30), parts[0], many.draw(70)]))
        second = many.step([(2, 1), (0, 1), (3, 5)], torch.cat([many.draw(1), parts[1], many.draw(5)]))
        assert torch.equal(torch.cat([first[30:120], second[1:2]]), expected)


def test_blocks_that_were_moved_are_read_where_they_went(compiled) -> None:
    conversation = Conversation(compiled, LayerShape(2, 32, 48, None), 2)
    conversation.step([(0, 101)])
    request = conversation.requests[0]
    spare = conversation.requests[3].blocks[:2]

    conversation.cache.move([(request.blocks[0], spare[0]), (request.blocks[1], spare[1])])
    request.blocks[:2] = spare

    conversation.step([(0, 1)])


def test_scores_far_apart_leave_the_highest_alone(compiled) -> None:
    conversation = Conversation(compiled, LayerShape(1, 16, 16, None), 1)

    conversation.step([(0, 100)], conversation.draw(100) * 100)
    conversation.step([(0, 1)], conversation.draw(1) * 100)


def test_only_heads_that_the_kernels_are_made_for_are_attended() -> None:
    def can(key_dim: int = 64, value_dim: int = 64, heads: int = 8, dtype: torch.dtype = torch.bfloat16) -> bool:
        return can_attend([LayerShape(2, 64, 64, None), LayerShape(2, key_dim, value_dim, None)], [8, heads], dtype)

    assert can()
    assert can(key_dim=18)
    assert can(value_dim=256, heads=96)
    assert not can(key_dim=17)
    assert not can(value_dim=40)
    assert not can(value_dim=272)
    assert not can(heads=98)
    assert not can(dtype=torch.float32)

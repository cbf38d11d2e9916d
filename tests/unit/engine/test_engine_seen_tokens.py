"""What a request has seen is followed from step to step."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferapi.engine.seen_tokens import CountedTokens, SeenTokens

few_ids = st.integers(0, 20)


@given(prompt=st.lists(few_ids, max_size=600), answer=st.lists(few_ids, max_size=600), data=st.data())
def test_all_tokens_are_in_it_and_no_others(prompt: list[int], answer: list[int], data: st.DataObject) -> None:
    seen, tokens = SeenTokens(), list(prompt)
    for part in np.array_split(answer, data.draw(st.integers(1, 20))):
        assert set(seen.follow(tokens).tolist()) == set(tokens)
        tokens += part.tolist()
    assert set(seen.follow(tokens).tolist()) == set(tokens)


def test_a_prompt_that_repeats_itself_is_kept_once() -> None:
    assert seen_of([7, 7, 3] * 1000) == [3, 7]


def test_an_answer_that_repeats_itself_takes_room_for_a_few_hundred_tokens_only() -> None:
    seen, tokens = SeenTokens(), [1]
    longest = 0
    for _ in range(5000):
        tokens.append(9)
        longest = max(longest, len(seen.follow(tokens)))

    assert longest <= 300


@pytest.mark.parametrize("tokens", [[], [5]])
def test_a_step_without_new_tokens_changes_nothing(tokens: list[int]) -> None:
    seen = SeenTokens()

    assert seen.follow(tokens).tolist() == seen.follow(tokens).tolist() == tokens


def seen_of(tokens: list[int]) -> list[int]:
    return SeenTokens().follow(tokens).tolist()


@given(prompt=st.lists(few_ids, max_size=30), answer=st.lists(few_ids, max_size=600), data=st.data())
def test_an_answer_s_tokens_are_counted_and_not_the_prompt_s(
    prompt: list[int], answer: list[int], data: st.DataObject
) -> None:
    counted, tokens = CountedTokens(), list(prompt)
    for part in np.array_split(answer, data.draw(st.integers(1, 20))):
        tokens += part.astype(int).tolist()
        ids, counts = counted.follow(tokens, len(prompt))
        expected = Counter(tokens[len(prompt) :])
        assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == expected
        assert len(ids) == len(expected)  # each once


def test_counts_grow_with_the_answer_s_own_vocabulary() -> None:
    counted, tokens = CountedTokens(), [5]
    for token in range(1000):
        tokens.append(token)
        ids, counts = counted.follow(tokens, 1)

    assert ids.tolist() == list(range(1000))
    assert counts.tolist() == [1.0] * 1000

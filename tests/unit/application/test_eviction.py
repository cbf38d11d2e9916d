from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from inferapi.application.eviction import cheapest, cost

models = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 1000)), max_size=7)
"""Each with its bytes, and what evicting it costs: whole numbers, so that sums are exact."""
many = st.lists(st.tuples(st.integers(1, 8), st.integers(0, 1000)), min_size=11, max_size=20)
needs = st.integers(0, 30)


def freed(chosen):
    return sum(size for size, _ in chosen)


def paid(chosen):
    return sum(price for _, price in chosen)


def find(candidates, needed):
    return cheapest(list(candidates), lambda model: model[1], lambda chosen: freed(chosen) >= needed)


@given(candidates=models, needed=needs)
def test_it_frees_enough_or_there_is_no_way(candidates, needed):
    chosen = find(candidates, needed)
    if chosen is None:
        assert freed(candidates) < needed
    else:
        assert freed(chosen) >= needed


@given(candidates=models, needed=needs)
def test_no_fewer_would_do_and_none_of_as_many_is_cheaper(candidates, needed):
    enough = [
        others
        for size in range(len(candidates) + 1)
        for others in combinations(candidates, size)
        if freed(others) >= needed
    ]
    chosen = find(candidates, needed)
    if enough:
        assert (len(chosen), paid(chosen)) == min((len(others), paid(others)) for others in enough)
    else:
        assert chosen is None


@given(candidates=models, needed=needs)
def test_it_takes_each_at_most_once_and_only_candidates(candidates, needed):
    named = [(size, price, number) for number, (size, price) in enumerate(candidates)]
    chosen = cheapest(named, lambda model: model[1], lambda some: sum(one[0] for one in some) >= needed)
    assert len(set(chosen or ())) == len(chosen or ())
    assert set(chosen or ()) <= set(named)


@given(candidates=many, needed=needs)
def test_of_many_the_cheapest_go_one_by_one_and_none_more_than_needed(candidates, needed):
    chosen = find(candidates, needed)
    if chosen is None:
        assert freed(candidates) < needed
    else:
        assert freed(chosen) >= needed
        assert not chosen or freed(chosen[:-1]) < needed
        assert sorted(paid([one]) for one in chosen) == sorted(paid([one]) for one in candidates)[: len(chosen)]


def test_nobody_goes_where_there_is_room():
    assert find([(4, 1), (2, 1)], 0) == ()


def test_one_dear_model_goes_rather_than_two_cheap_ones():
    assert find([(2, 1), (2, 1), (4, 100)], 4) == ((4, 100),)


def test_of_two_that_free_enough_the_one_cheaper_to_bring_back_goes():
    assert find([(4, 9), (4, 2)], 4) == ((4, 2),)


def test_a_model_costs_its_load_time_and_less_the_longer_nobody_asked_for_it():
    assert cost(load_s=10, idle_s=5) == 2
    assert cost(load_s=10, idle_s=100) == 0.1
    assert cost(load_s=3, idle_s=5) == 0.6


def test_a_model_used_just_now_costs_its_load_time():
    assert cost(load_s=10, idle_s=0) == cost(load_s=10, idle_s=1) == 10

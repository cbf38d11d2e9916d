"""Whose turn it is: with few words for the turns, and whatever the order of arrivals, slots and departures."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferapi.engine.fair_queue import FairQueue, in_fair_order

OWNERS = "abc"


@dataclass(frozen=True)
class Item:
    number: int
    salt: str
    size: int = 1


def queue_of(*owners: str) -> FairQueue[Item]:
    """Items in this order of arrival, numbered from 0."""
    queue: FairQueue[Item] = FairQueue()
    for number, owner in enumerate(owners):
        queue.push(Item(number, owner))
    return queue


def taken(queue: FairQueue[Item], *, keeps_slots: bool = False) -> str:
    """The owners of all that wait, as they are taken."""
    order = ""
    while len(queue):
        item = queue.take()
        if keeps_slots:
            queue.hold(item.salt)
        order += item.salt
    return order


def test_of_one_owner_the_first_to_come_is_the_first_to_go():
    queue = queue_of("a", "a", "a")
    assert [queue.take().number for _ in range(3)] == [0, 1, 2]
    assert (len(queue), queue.head()) == (0, None)


def test_owners_take_turns_in_the_order_in_which_they_came():
    assert taken(queue_of("a", "a", "a", "b", "c", "c")) == "abcaca"


def test_one_that_comes_behind_a_flood_is_second():
    queue = queue_of(*"aaaaaaaa")
    queue.take()
    queue.push(Item(99, "b"))
    assert taken(queue) == "abaaaaaa"


def test_the_next_slot_is_of_the_owner_that_holds_the_fewest():
    queue = queue_of(*"aaabb")
    for _ in range(3):
        queue.hold("a")
    queue.hold("b")
    assert taken(queue, keeps_slots=True) == "bbaaa"


def test_who_gave_slots_back_has_a_turn_again():
    queue = queue_of(*"ab")
    queue.hold("a")
    assert queue.head().salt == "b"
    queue.give_back("a")
    assert queue.head().salt == "a"


def test_who_leaves_the_queue_leaves_the_others_in_order_and_its_owner_its_turn():
    queue = queue_of(*"aabb")
    first = queue.head()
    queue.remove(first)
    assert [queue.take().number for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("owner", ["a", "b"])
def test_one_that_does_not_wait_cannot_leave(owner):
    with pytest.raises(ValueError, match=r"wait|not in"):
        queue_of("a").remove(Item(7, owner))


def test_nobody_can_be_taken_from_an_empty_queue():
    with pytest.raises(IndexError):
        queue_of().take()


@pytest.mark.parametrize(
    ("waiting", "newcomer", "number"),
    [
        ("", "a", None),
        ("a", "a", None),
        ("aaaa", "a", None),
        ("a", "b", None),  # the newcomer would have as many: it goes itself
        ("aa", "b", 1),
        ("aab", "b", None),
        ("aaab", "b", 2),
        ("abbb", "c", 3),
        ("aabb", "c", 1),
    ],
)
def test_the_last_of_the_longest_queue_gives_way_to_a_shorter_one(waiting, newcomer, number):
    gone = queue_of(*waiting).gives_way_to(newcomer)
    assert (gone.number if gone else None) == number


moves = st.one_of(
    st.tuples(st.just("push"), st.sampled_from(OWNERS)),
    st.tuples(st.just("admit"), st.just("")),
    st.tuples(st.just("end"), st.sampled_from(OWNERS)),
    st.tuples(st.just("leave"), st.sampled_from(OWNERS)),
)


class Model:
    """The queue beside plain lists that say what it must hold."""

    def __init__(self) -> None:
        self.queue: FairQueue[Item] = FairQueue()
        self.waiting: dict[str, list[Item]] = {owner: [] for owner in OWNERS}
        self.slots = dict.fromkeys(OWNERS, 0)
        self.overtaken: dict[str, dict[str, int]] = {}
        self.pushed = 0

    def move(self, what: str, owner: str) -> None:
        if what == "push":
            item = Item(self.pushed, owner)
            self.pushed += 1
            self.queue.push(item)
            self.waiting[owner].append(item)
        elif what == "admit" and any(self.waiting.values()):
            self.admit()
        elif what == "end" and self.slots[owner]:
            self.queue.give_back(owner)
            self.slots[owner] -= 1
        elif what == "leave" and self.waiting[owner]:
            self.queue.remove(self.waiting[owner].pop())
        for other in OWNERS:
            if not self.waiting[other] or self.slots[other]:
                self.overtaken.pop(other, None)
            else:
                self.overtaken.setdefault(other, dict.fromkeys(OWNERS, 0))

    def admit(self) -> None:
        item = self.queue.take()
        assert item is self.waiting[item.salt].pop(0)  # in order within the owner
        fewest = min(self.slots[owner] for owner in OWNERS if self.waiting[owner] or owner == item.salt)
        assert self.slots[item.salt] == fewest  # a flood never goes before one that holds less
        for owner, by in self.overtaken.items():
            if owner != item.salt:
                by[item.salt] += 1
                assert by[item.salt] <= 1  # and one that holds nothing is overtaken by each other once at most
        self.queue.hold(item.salt)
        self.slots[item.salt] += 1


@settings(max_examples=300, deadline=None)
@given(made=st.lists(moves, max_size=80))
def test_whatever_happens_nobody_is_lost_and_a_flood_is_one_turn_ahead_at_most(made):
    model = Model()
    for what, owner in made:
        model.move(what, owner)
        everybody = sorted(item.number for items in model.waiting.values() for item in items)
        assert sorted(item.number for item in model.queue) == everybody
        assert len(model.queue) == len(everybody)


def test_of_one_owner_the_smallest_come_first_and_equals_in_their_order():
    items = [Item(number, "a", size) for number, size in enumerate((5, 9, 5, 3))]
    assert [item.number for item in in_fair_order(items, lambda item: item.size)] == [3, 0, 2, 1]


def test_many_small_ones_of_one_owner_come_in_turns_with_those_of_another():
    items = [Item(n, "a", 10) for n in range(4)] + [Item(4, "b", 15), Item(5, "b", 12)]
    ordered = in_fair_order(items, lambda item: item.size)
    assert [(item.salt, item.size) for item in ordered] == [
        ("a", 10),
        ("b", 12),
        ("a", 10),
        ("b", 15),  # its two end at 27
        ("a", 10),
        ("a", 10),
    ]


sized = st.lists(st.builds(Item, st.integers(0, 9), st.sampled_from(OWNERS), st.integers(1, 50)), max_size=20)


@settings(max_examples=200, deadline=None)
@given(items=sized)
def test_what_comes_before_an_item_of_another_owner_is_no_more_than_what_its_own_owner_has_up_to_it(items):
    ordered = in_fair_order(items, lambda item: item.size)
    assert sorted(map(repr, ordered)) == sorted(map(repr, items))
    for place, item in enumerate(ordered):
        own = sum(other.size for other in ordered[: place + 1] if other.salt == item.salt)
        for owner in set(OWNERS) - {item.salt}:
            assert sum(other.size for other in ordered[:place] if other.salt == owner) <= own
    for owner in OWNERS:
        sizes = [item.size for item in ordered if item.salt == owner]
        assert sizes == sorted(sizes)

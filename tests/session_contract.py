"""What every session store does: leases and turns here, lists and expiry in ``session_list_contract``.

A test class inherits the contracts and gives their fixtures; pytest then runs every sentence on that adapter::

    class OnMemory:
        @pytest.fixture
        def clock(self): return FakeClock()

        @pytest.fixture
        def store(self, clock): return MemorySessionStore(clock, self.TTL_S)

        async def pass_time(self, clock, duration_s): await clock.advance(duration_s)

    class TestTurns(OnMemory, SessionStoreContract): pass
    class TestLists(OnMemory, SessionListContract): pass
    class TestExpiry(OnMemory, SessionExpiryContract): pass
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import ClassVar

import pytest

from inferapi.domain.chat import Lease, OpenTurn, Session, SessionChange, SessionRef, Turn
from inferapi.domain.errors import HistoryNotSaved, SessionExists
from inferapi.domain.ports import Clock, SessionStore

LONG_S = 60.0
"""A lease that no test outlives."""

ODD = 'line\nbreak\r\t"quotes" \\ \x00 \x1f \u2028 \ufeff \uffff héllo 漢字 🙂 {"json": [1]} <|im_end|> \'; DROP TABLE'
S1 = SessionRef("", "s1")


def make_turn(number: int = 1, *, user: str = "How are you?", assistant: str = "Fine.") -> Turn:
    return Turn(f"turn-{number}", user, assistant, "gpt2", 1_700_000_000.5 + number, 10 + number, 5)


def adding(number: int = 1, *, dropped_oldest: int = 0, dropped_newest: int = 0, **texts: str) -> SessionChange:
    return SessionChange(make_turn(number, **texts), dropped_oldest, dropped_newest)


async def must_begin(store: SessionStore, ref: SessionRef, holder: str = "a", lease_s: float = LONG_S) -> OpenTurn:
    opened = await store.begin(ref, holder, lease_s)
    assert opened is not None
    return opened


async def write(
    store: SessionStore, ref: SessionRef, change: SessionChange, at_s: float, *, system_prompt: str = "Be brief."
) -> Session:
    """One turn, from its lease to its end."""
    opened = await must_begin(store, ref, "writer")
    return await store.commit(opened.lease, opened.session or Session(ref, system_prompt), change, at_s)


class SessionStoreFixtures:
    """Give ``store``, an empty one of ``TTL_S`` seconds, its ``clock``, and how time passes for both."""

    TTL_S: ClassVar[float] = 3600.0
    """How long a session is kept. No test of these lasts as long."""
    LEASE_S: ClassVar[float] = 0.5
    """A lease that runs out within the test; there is time for two operations before."""
    TICK_S: ClassVar[float] = 0.01
    """Enough for one use to be later than another."""

    @pytest.fixture
    def clock(self) -> Clock:
        raise NotImplementedError

    @pytest.fixture
    def store(self, clock: Clock) -> SessionStore:
        raise NotImplementedError

    async def pass_time(self, clock: Clock, duration_s: float) -> None:
        """Let at least so much time pass; a server that keeps its own time needs a real sleep."""
        raise NotImplementedError


class SessionStoreContract(SessionStoreFixtures):
    """Leases, turns, and what a session is made of."""

    async def test_an_unknown_session_is_none(self, store: SessionStore) -> None:
        assert await store.get(S1) is None

    async def test_beginning_a_new_session_gives_a_lease_and_stores_none(self, store: SessionStore) -> None:
        opened = await must_begin(store, S1, "a")
        assert (opened.lease.ref, opened.lease.holder) == (S1, "a")
        assert (opened.session, opened.system_prompt) == (None, None)
        assert await store.get(S1) is None

    async def test_beginning_gives_the_session_and_the_system_prompt_that_was_set(
        self, store: SessionStore, clock: Clock
    ) -> None:
        stored = await write(store, S1, adding(1), clock.wall_s(), system_prompt="You are a cat.")
        await store.set_system_prompt("You are a pirate.")
        opened = await must_begin(store, S1)
        assert (opened.session, opened.system_prompt) == (stored, "You are a pirate.")

    async def test_the_first_turn_makes_the_session(self, store: SessionStore, clock: Clock) -> None:
        at_s, before = clock.wall_s(), Session(S1, "Be brief.")
        opened = await must_begin(store, S1)
        stored = await store.commit(opened.lease, before, adding(1), at_s)
        assert stored == Session(S1, "Be brief.", at_s, at_s, (make_turn(1),), 1, "How are you?", 0)
        assert await store.get(S1) == stored

    async def test_a_later_turn_is_added_and_counted(self, store: SessionStore, clock: Clock) -> None:
        first = await write(store, S1, adding(1, user="Who  are\nyou?"), clock.wall_s())
        at_s = clock.wall_s() + 1.5
        second = await write(store, S1, adding(2), at_s)
        assert second == first.changed(adding(2), at_s)
        assert (second.version, second.title) == (2, "Who are you?")
        assert (second.created_at_s, second.used_at_s) == (first.created_at_s, at_s)
        assert await store.get(S1) == second

    async def test_the_oldest_and_the_newest_turns_can_be_dropped(self, store: SessionStore, clock: Clock) -> None:
        at_s = clock.wall_s()
        for number in range(1, 6):
            await write(store, S1, adding(number), at_s)
        stored = await write(store, S1, adding(6, dropped_oldest=2, dropped_newest=1), at_s)
        assert [turn.turn_id for turn in stored.turns] == ["turn-3", "turn-4", "turn-6"]
        assert (stored.version, stored.forgotten_turns) == (6, 2)
        assert await store.get(S1) == stored
        stored = await write(store, S1, adding(7, dropped_oldest=1), at_s)
        assert [turn.turn_id for turn in stored.turns] == ["turn-4", "turn-6", "turn-7"]
        assert await store.get(S1) == stored

    async def test_a_change_can_take_a_turn_away_and_add_none(self, store: SessionStore, clock: Clock) -> None:
        await write(store, S1, adding(1), clock.wall_s())
        await write(store, S1, adding(2), clock.wall_s())
        shorter = await write(store, S1, SessionChange(dropped_newest=1), clock.wall_s())
        assert [turn.turn_id for turn in shorter.turns] == ["turn-1"]
        assert await store.get(S1) == shorter

    async def test_a_session_can_lose_all_its_turns_and_go_on(self, store: SessionStore, clock: Clock) -> None:
        await write(store, S1, adding(1, user="Once."), clock.wall_s())
        empty = await write(store, S1, SessionChange(dropped_newest=1), clock.wall_s())
        assert (empty.turns, empty.version, empty.title) == ((), 2, "")
        assert await store.get(S1) == empty
        assert (await must_begin(store, S1, "writer")).session == empty
        await store.end(S1, "writer")
        assert await write(store, S1, adding(3), clock.wall_s()) == await store.get(S1)

    async def test_a_change_replaces_every_turn_by_one(self, store: SessionStore, clock: Clock) -> None:
        for number in (1, 2, 3):
            await write(store, S1, adding(number), clock.wall_s())
        stored = await write(store, S1, adding(4, dropped_oldest=3), clock.wall_s())
        assert ([turn.turn_id for turn in stored.turns], stored.forgotten_turns) == (["turn-4"], 3)
        assert await store.get(S1) == stored

    async def test_a_session_of_300_turns_comes_back_whole(self, store: SessionStore, clock: Clock) -> None:
        session = None
        for number in range(300):
            opened = await must_begin(store, S1)
            assert opened.session == session
            before = opened.session or Session(S1, "Be brief.")
            session = await store.commit(opened.lease, before, adding(number), clock.wall_s())
        read = await store.get(S1)
        assert read is not None
        assert [turn.turn_id for turn in read.turns] == [f"turn-{number}" for number in range(300)]
        assert read == session

    async def test_whatever_was_written_comes_back_as_it_was(self, store: SessionStore, clock: Clock) -> None:
        ref = SessionRef("key~A.b-c_1", "a.b_c~d-1")
        turn = replace(make_turn(user=ODD, assistant=""), finish_reason="length", idempotency_key=ODD, model=ODD)
        stored = await write(store, ref, SessionChange(turn), clock.wall_s(), system_prompt=ODD)
        await store.set_system_prompt(ODD)
        assert stored.turns == (turn,)
        assert await store.get(ref) == stored
        assert await store.system_prompt() == ODD

    async def test_long_texts_come_back_as_they_were(self, store: SessionStore, clock: Clock) -> None:
        long = "漢字 \x00 abcd" * 20_000
        stored = await write(store, S1, adding(1, user=long, assistant=long), clock.wall_s(), system_prompt=long)
        assert await store.get(S1) == stored
        assert stored.turns[0].size_bytes > 400_000

    async def test_sessions_do_not_mix(self, store: SessionStore, clock: Clock) -> None:
        refs = [
            SessionRef(*names) for names in (("", "s"), ("", "S"), ("s", "S"), ("s", "s"), ("s", "s.s"), ("s.s", "s"))
        ]
        await asyncio.gather(*(must_begin(store, ref, f"h{number}") for number, ref in enumerate(refs)))
        for number, ref in enumerate(refs):
            await store.end(ref, f"h{number}")
            await write(store, ref, adding(number), clock.wall_s(), system_prompt=str(number))
        for number, ref in enumerate(refs):
            read = await store.get(ref)
            assert read is not None
            assert (read.ref, read.system_prompt, read.turns) == (ref, str(number), (make_turn(number),))
        assert await store.delete(refs[0]) is True
        assert [await store.get(ref) is None for ref in refs] == [True] + [False] * (len(refs) - 1)

    # --- leases

    async def test_who_has_the_lease_keeps_others_out_until_the_end(self, store: SessionStore) -> None:
        await must_begin(store, S1, "a")
        assert await store.begin(S1, "b", LONG_S) is None
        await store.end(S1, "a")
        await must_begin(store, S1, "b")

    async def test_a_commit_ends_the_lease(self, store: SessionStore, clock: Clock) -> None:
        await write(store, S1, adding(1), clock.wall_s())
        await must_begin(store, S1, "b")

    async def test_a_lease_that_ran_out_lets_the_next_one_in(self, store: SessionStore, clock: Clock) -> None:
        await must_begin(store, S1, "a", self.LEASE_S)
        await self.pass_time(clock, 1.2 * self.LEASE_S)
        await must_begin(store, S1, "b")

    async def test_of_twenty_who_begin_at_once_one_has_the_lease(self, store: SessionStore) -> None:
        opened = await asyncio.gather(*(store.begin(S1, f"h{number}", LONG_S) for number in range(20)))
        assert sum(turn is not None for turn in opened) == 1

    async def test_every_turn_of_many_who_contend_is_stored_once(self, store: SessionStore, clock: Clock) -> None:
        async def contend(number: int) -> None:
            while (opened := await store.begin(S1, f"h{number}", LONG_S)) is None:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.001)
            await store.commit(opened.lease, opened.session or Session(S1, ""), adding(number), clock.wall_s())

        await asyncio.gather(*(contend(number) for number in range(6)))
        read = await store.get(S1)
        assert read is not None
        assert sorted(turn.turn_id for turn in read.turns) == [f"turn-{number}" for number in range(6)]
        assert read.version == 6

    async def test_tokens_grow_even_beyond_a_deletion(self, store: SessionStore, clock: Clock) -> None:
        tokens = []
        for number in range(3):
            tokens.append((await must_begin(store, S1, "a")).lease.token)
            await store.end(S1, "a")
            await write(store, S1, adding(number), clock.wall_s())
        await store.delete(S1)
        tokens.append((await must_begin(store, S1, "b")).lease.token)
        assert tokens == sorted(set(tokens))

    async def test_a_renewed_lease_outlives_its_first_time(self, store: SessionStore, clock: Clock) -> None:
        opened = await must_begin(store, S1, "a", self.LEASE_S)
        assert await store.renew(opened.lease, LONG_S) is True
        await self.pass_time(clock, 1.2 * self.LEASE_S)
        assert await store.begin(S1, "b", LONG_S) is None
        await store.commit(opened.lease, Session(S1, ""), adding(1), clock.wall_s())

    async def test_a_lease_is_renewed_from_now_on_even_for_a_shorter_time(
        self, store: SessionStore, clock: Clock
    ) -> None:
        opened = await must_begin(store, S1, "a", LONG_S)
        assert await store.renew(opened.lease, self.LEASE_S) is True
        await self.pass_time(clock, 1.2 * self.LEASE_S)
        await must_begin(store, S1, "b")

    async def test_a_lease_that_ran_out_is_not_renewed(self, store: SessionStore, clock: Clock) -> None:
        opened = await must_begin(store, S1, "a", self.LEASE_S)
        await self.pass_time(clock, 1.2 * self.LEASE_S)
        assert await store.renew(opened.lease, LONG_S) is False
        await must_begin(store, S1, "b")
        assert await store.renew(opened.lease, LONG_S) is False

    async def test_the_lease_of_a_deleted_session_is_not_renewed(self, store: SessionStore) -> None:
        opened = await must_begin(store, S1, "a")
        await store.delete(S1)
        assert await store.renew(opened.lease, LONG_S) is False

    async def test_a_stranger_neither_ends_nor_renews_a_lease(self, store: SessionStore) -> None:
        opened = await must_begin(store, S1, "a")
        await store.end(S1, "b")
        assert await store.renew(replace(opened.lease, holder="b"), LONG_S) is False
        assert await store.begin(S1, "b", LONG_S) is None
        assert await store.renew(opened.lease, LONG_S) is True

    async def test_ending_a_lease_that_nobody_has_does_nothing(self, store: SessionStore) -> None:
        await store.end(S1, "a")
        assert await store.delete(S1) is False

    async def test_a_lease_leaves_reading_to_everybody(self, store: SessionStore, clock: Clock) -> None:
        stored = await write(store, S1, adding(1), clock.wall_s())
        await must_begin(store, S1, "a")
        assert await store.get(S1) == stored
        assert [line.session_id for line in (await store.page("", 10, None)).sessions] == ["s1"]

    # --- commits that are refused

    async def _refused(self, store: SessionStore, lease: Lease, before: Session, at_s: float) -> None:
        """The commit is refused, and everything is as it was."""
        stored, listed = await store.get(lease.ref), await store.page(lease.ref.owner, 10, None)
        with pytest.raises(HistoryNotSaved):
            await store.commit(lease, before, adding(99, dropped_oldest=len(before.turns)), at_s + 1.0)
        assert await store.get(lease.ref) == stored
        assert await store.page(lease.ref.owner, 10, None) == listed

    async def test_no_turn_is_stored_after_its_lease_ran_out(self, store: SessionStore, clock: Clock) -> None:
        await write(store, S1, adding(1), clock.wall_s())
        opened = await must_begin(store, S1, "a", self.LEASE_S)
        assert opened.session is not None
        await self.pass_time(clock, 1.2 * self.LEASE_S)
        await self._refused(store, opened.lease, opened.session, clock.wall_s())

    async def test_no_first_turn_is_stored_after_its_lease_ran_out(self, store: SessionStore, clock: Clock) -> None:
        opened = await must_begin(store, S1, "a", self.LEASE_S)
        await self.pass_time(clock, 1.2 * self.LEASE_S)
        await self._refused(store, opened.lease, Session(S1, ""), clock.wall_s())

    async def test_a_turn_whose_lease_went_to_another_is_not_stored_and_leaves_that_other_alone(
        self, store: SessionStore, clock: Clock
    ) -> None:
        late = await must_begin(store, S1, "a", self.LEASE_S)
        await self.pass_time(clock, 1.2 * self.LEASE_S)
        other = await must_begin(store, S1, "b")
        await self._refused(store, late.lease, Session(S1, ""), clock.wall_s())
        await store.end(S1, "a")
        stored = await store.commit(other.lease, Session(S1, ""), adding(2), clock.wall_s())
        await self._refused(store, late.lease, Session(S1, ""), clock.wall_s())
        await self._refused(store, late.lease, stored, clock.wall_s())

    async def test_a_turn_that_ran_while_its_session_was_deleted_is_not_stored(
        self, store: SessionStore, clock: Clock
    ) -> None:
        stored = await write(store, S1, adding(1), clock.wall_s())
        opened = await must_begin(store, S1, "a")
        assert await store.delete(S1) is True
        await self._refused(store, opened.lease, stored, clock.wall_s())
        await self._refused(store, opened.lease, Session(S1, ""), clock.wall_s())
        assert await store.get(S1) is None

    async def test_a_first_turn_that_ran_while_its_session_was_deleted_is_not_stored(
        self, store: SessionStore, clock: Clock
    ) -> None:
        opened = await must_begin(store, S1, "a")
        assert await store.delete(S1) is True
        await self._refused(store, opened.lease, Session(S1, ""), clock.wall_s())
        assert await store.get(S1) is None

    async def test_a_turn_of_a_deleted_session_does_not_enter_the_one_made_anew(
        self, store: SessionStore, clock: Clock
    ) -> None:
        stored = await write(store, S1, adding(1), clock.wall_s())
        opened = await must_begin(store, S1, "a")
        await store.delete(S1)
        anew = await must_begin(store, S1, "b")
        assert anew.session is None
        await self._refused(store, opened.lease, stored, clock.wall_s())
        await store.commit(anew.lease, Session(S1, ""), adding(2), clock.wall_s())
        await self._refused(store, opened.lease, stored, clock.wall_s())  # of the same version by chance
        read = await store.get(S1)
        assert read is not None
        assert [turn.turn_id for turn in read.turns] == ["turn-2"]

    async def test_a_turn_on_another_version_than_the_stored_one_is_not_stored(
        self, store: SessionStore, clock: Clock
    ) -> None:
        first = await write(store, S1, adding(1), clock.wall_s())
        second = await write(store, S1, adding(2), clock.wall_s())
        opened = await must_begin(store, S1)
        for before in (first, Session(S1, ""), replace(second, version=3)):
            await self._refused(store, opened.lease, before, clock.wall_s())

    async def test_a_turn_on_a_session_that_is_not_there_is_not_stored(self, store: SessionStore, clock: Clock) -> None:
        opened = await must_begin(store, S1)
        await self._refused(store, opened.lease, Session(S1, "", version=1), clock.wall_s())
        assert await store.get(S1) is None

    async def test_a_lease_serves_one_commit(self, store: SessionStore, clock: Clock) -> None:
        opened = await must_begin(store, S1)
        stored = await store.commit(opened.lease, Session(S1, ""), adding(1), clock.wall_s())
        await self._refused(store, opened.lease, stored, clock.wall_s())

    async def test_a_write_under_a_token_older_than_the_last_writers_is_refused(
        self, store: SessionStore, clock: Clock
    ) -> None:
        old = await must_begin(store, S1, "a")
        await store.end(S1, "a")
        stored = await write(store, S1, adding(1), clock.wall_s())
        opened = await must_begin(store, S1, "a")
        await self._refused(store, replace(opened.lease, token=old.lease.token), stored, clock.wall_s())
        await store.commit(opened.lease, stored, adding(2), clock.wall_s())

    # --- whole sessions

    async def test_a_created_session_is_stored_whole_and_goes_on(self, store: SessionStore, clock: Clock) -> None:
        at_s = clock.wall_s()
        turns = tuple(make_turn(number, user=ODD) for number in range(3))
        fork = replace(Session(S1, ODD, forgotten_turns=2), turns=turns).copy(SessionRef("", "s2"), turns[:2], at_s)
        await store.create(fork)
        assert await store.get(fork.ref) == fork
        opened = await must_begin(store, fork.ref)
        assert opened.session == fork
        longer = await store.commit(opened.lease, fork, adding(4), at_s)
        assert ([turn.turn_id for turn in longer.turns], longer.version) == (["turn-0", "turn-1", "turn-4"], 2)
        assert await store.get(fork.ref) == longer

    async def test_a_session_without_turns_can_be_created(self, store: SessionStore, clock: Clock) -> None:
        empty = Session(S1, "Be brief.").copy(S1, (), clock.wall_s())
        await store.create(empty)
        assert await store.get(S1) == empty

    async def test_no_session_is_created_over_another(self, store: SessionStore, clock: Clock) -> None:
        stored = await write(store, S1, adding(1), clock.wall_s())
        with pytest.raises(SessionExists):
            await store.create(stored.copy(S1, (make_turn(7), make_turn(8)), clock.wall_s()))
        assert await store.get(S1) == stored

    async def test_no_session_is_created_where_a_turn_is_running(self, store: SessionStore, clock: Clock) -> None:
        opened = await must_begin(store, S1, "a")
        fork = Session(S1, "Other.").copy(S1, (make_turn(7),), clock.wall_s())
        with pytest.raises(SessionExists):
            await store.create(fork)
        assert await store.get(S1) is None
        await store.commit(opened.lease, Session(S1, ""), adding(1), clock.wall_s())

    async def test_of_ten_who_create_a_session_at_once_one_succeeds(self, store: SessionStore, clock: Clock) -> None:
        forks = [Session(S1, "").copy(S1, (make_turn(number),), clock.wall_s()) for number in range(10)]
        results = await asyncio.gather(*(store.create(fork) for fork in forks), return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["NoneType"] + ["SessionExists"] * 9
        assert await store.get(S1) == forks[results.index(None)]

    async def test_a_deleted_session_is_gone_and_its_id_is_free(self, store: SessionStore, clock: Clock) -> None:
        for number in range(3):
            await write(store, S1, adding(number), clock.wall_s())
        assert await store.delete(S1) is True
        assert await store.get(S1) is None
        assert await store.delete(S1) is False
        anew = await write(store, S1, adding(9), clock.wall_s())
        assert ([turn.turn_id for turn in anew.turns], anew.version) == (["turn-9"], 1)
        assert await store.get(S1) == anew

    async def test_deleting_takes_the_lease_away(self, store: SessionStore, clock: Clock) -> None:
        await must_begin(store, S1, "a")
        assert await store.delete(S1) is True
        assert await store.delete(S1) is False
        await write(store, S1, adding(1), clock.wall_s())
        await must_begin(store, S1, "a")
        assert await store.delete(S1) is True
        await must_begin(store, S1, "b")

    async def test_a_lease_that_ran_out_is_nothing_to_delete(self, store: SessionStore, clock: Clock) -> None:
        await must_begin(store, S1, "a", self.LEASE_S)
        await self.pass_time(clock, 1.2 * self.LEASE_S)
        assert await store.delete(S1) is False

    async def test_another_owner_deletes_nothing(self, store: SessionStore, clock: Clock) -> None:
        ref, other = SessionRef("alice", "s1"), SessionRef("bob", "s1")
        stored = await write(store, ref, adding(1), clock.wall_s())
        opened = await must_begin(store, ref, "a")
        assert await store.delete(other) is False
        await store.end(other, "a")
        assert await store.get(other) is None
        await store.commit(opened.lease, stored, adding(2), clock.wall_s())

    # --- the store itself

    async def test_the_system_prompt_is_none_until_set_and_then_the_last_one(self, store: SessionStore) -> None:
        assert await store.system_prompt() is None
        await store.set_system_prompt("You are a pirate.")
        assert await store.system_prompt() == "You are a pirate."
        await store.set_system_prompt("")
        assert await store.system_prompt() == ""
        assert (await must_begin(store, S1)).system_prompt == ""

    async def test_a_new_system_prompt_leaves_stored_sessions_alone(self, store: SessionStore, clock: Clock) -> None:
        await write(store, S1, adding(1), clock.wall_s(), system_prompt="Be brief.")
        await store.set_system_prompt("You are a pirate.")
        assert (await write(store, S1, adding(2), clock.wall_s())).system_prompt == "Be brief."
        read = await store.get(S1)
        assert read is not None
        assert read.system_prompt == "Be brief."

    async def test_a_store_that_works_answers_a_ping(self, store: SessionStore) -> None:
        await store.ping()

    async def test_a_store_can_be_closed_twice_and_before_its_first_use(self, store: SessionStore) -> None:
        await store.aclose()
        await store.aclose()

    async def test_a_used_store_can_be_closed_twice(self, store: SessionStore, clock: Clock) -> None:
        await write(store, S1, adding(1), clock.wall_s())
        await store.aclose()
        await store.aclose()

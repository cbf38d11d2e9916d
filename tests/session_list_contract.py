"""What every session store does with many sessions, and with old ones. See ``session_contract`` for how to use it."""

from __future__ import annotations

import base64
from typing import ClassVar

import pytest

from inferapi.domain.chat import Session, SessionRef, SessionSummary
from inferapi.domain.errors import HistoryNotSaved, InvalidRequest
from inferapi.domain.ports import Clock, SessionStore
from session_contract import S1, SessionStoreFixtures, adding, make_turn, must_begin, write


async def every_page(store: SessionStore, owner: str, limit: int) -> list[list[str]]:
    """The ids on each page, to the last."""
    pages: list[list[str]] = []
    cursor = None
    while len(pages) < 100:
        page = await store.page(owner, limit, cursor)
        assert len(page.sessions) <= limit
        pages.append([line.session_id for line in page.sessions])
        cursor = page.next_cursor
        if cursor is None:
            return pages
    pytest.fail("the pages have no end")


async def listed(store: SessionStore, owner: str = "") -> list[str]:
    """The ids of all sessions."""
    return [session_id for ids in await every_page(store, owner, 100) for session_id in ids]


class SessionListContract(SessionStoreFixtures):
    """Pages of an owner's sessions."""

    async def _write_all(self, store: SessionStore, clock: Clock, *ids: str, owner: str = "") -> None:
        for session_id in ids:
            await write(store, SessionRef(owner, session_id), adding(1), clock.wall_s())
            await self.pass_time(clock, self.TICK_S)

    async def test_an_owner_without_sessions_has_an_empty_page(self, store: SessionStore) -> None:
        page = await store.page("alice", 10, None)
        assert (page.sessions, page.next_cursor) == ((), None)

    async def test_a_line_tells_what_the_session_is(self, store: SessionStore, clock: Clock) -> None:
        first = await write(store, S1, adding(1, user="Who are you?"), clock.wall_s())
        last = await write(store, S1, adding(2), clock.wall_s() + 0.25)
        page = await store.page("", 10, None)
        line = SessionSummary("s1", "Who are you?", 2, first.created_at_s, last.used_at_s)
        assert (page.sessions, page.next_cursor) == ((line,), None)

    async def test_the_last_used_comes_first(self, store: SessionStore, clock: Clock) -> None:
        await self._write_all(store, clock, "b", "c", "a")
        assert await listed(store) == ["a", "c", "b"]
        await self._write_all(store, clock, "c")
        assert await listed(store) == ["c", "a", "b"]

    async def test_a_turn_that_began_is_a_use_and_reading_is_none(self, store: SessionStore, clock: Clock) -> None:
        await self._write_all(store, clock, "a", "b", "c")
        await must_begin(store, SessionRef("", "b"))
        await self.pass_time(clock, self.TICK_S)
        await store.get(SessionRef("", "a"))
        assert await listed(store) == ["b", "c", "a"]

    async def test_a_first_turn_that_only_began_is_not_listed(self, store: SessionStore) -> None:
        await must_begin(store, S1)
        assert await listed(store) == []

    async def test_created_sessions_are_listed(self, store: SessionStore, clock: Clock) -> None:
        await self._write_all(store, clock, "a")
        await store.create(Session(S1, "").copy(S1, (make_turn(1),), clock.wall_s()))
        assert await listed(store) == ["s1", "a"]

    async def test_deleted_sessions_are_not_listed(self, store: SessionStore, clock: Clock) -> None:
        await self._write_all(store, clock, "a", "b", "c")
        await store.delete(SessionRef("", "b"))
        assert await listed(store) == ["c", "a"]

    async def test_owners_see_their_own_sessions(self, store: SessionStore, clock: Clock) -> None:
        await self._write_all(store, clock, "a", "b", owner="alice")
        await self._write_all(store, clock, "b", "c", owner="bob")
        assert await listed(store, "alice") == ["b", "a"]
        assert await listed(store, "bob") == ["c", "b"]
        assert await listed(store, "") == []

    @pytest.mark.parametrize("limit", [1, 2, 3, 6, 7])
    async def test_pages_hold_every_session_once(self, store: SessionStore, clock: Clock, limit: int) -> None:
        await self._write_all(store, clock, *"abcdef")
        pages = await every_page(store, "", limit)
        assert pages == [list("fedcba")[start : start + limit] for start in range(0, 6, limit)]

    @pytest.mark.parametrize("limit", [1, 2, 5])
    async def test_sessions_used_at_the_same_instant_are_all_told_once(
        self, store: SessionStore, clock: Clock, limit: int
    ) -> None:
        at_s = clock.wall_s()
        for session_id in ("d", "a", "B", "c", "a.a", "~"):
            ref = SessionRef("", session_id)
            await store.create(Session(ref, "").copy(ref, (make_turn(1),), at_s))
        ids = [session_id for page in await every_page(store, "", limit) for session_id in page]
        assert sorted(ids) == sorted(["d", "a", "B", "c", "a.a", "~"])

    async def test_a_session_used_between_two_pages_is_told_at_most_once(
        self, store: SessionStore, clock: Clock
    ) -> None:
        await self._write_all(store, clock, *"abcdef")
        first = await store.page("", 2, None)
        await self._write_all(store, clock, "e", "a")  # one that was told, and one that was not
        second = await store.page("", 10, first.next_cursor)
        assert [line.session_id for line in first.sessions] == ["f", "e"]
        assert [line.session_id for line in second.sessions] == ["d", "c", "b"]
        assert await listed(store) == ["a", "e", "f", "d", "c", "b"]

    async def test_a_cursor_outlives_the_session_it_points_at(self, store: SessionStore, clock: Clock) -> None:
        await self._write_all(store, clock, *"abcd")
        first = await store.page("", 2, None)
        await store.delete(SessionRef("", "c"))
        second = await store.page("", 2, first.next_cursor)
        assert [line.session_id for line in second.sessions] == ["b", "a"]

    @pytest.mark.parametrize(
        "cursor",
        ["", "x", "!", "é", "\x00", "a" * 10_000, *(
            base64.urlsafe_b64encode(text).decode().rstrip("=")
            for text in (b"", b"|", b"1|", b"nan|a", b"inf|a", b"-1|a", b"1e400|a", b"a|1", b"1", b"\xff|a", b"1_0|a")
        )],
    )  # fmt: skip
    async def test_a_cursor_that_no_page_gave_is_refused(self, store: SessionStore, clock: Clock, cursor: str) -> None:
        await self._write_all(store, clock, "a")
        with pytest.raises(InvalidRequest):
            await store.page("", 10, cursor)

    async def test_a_cursor_that_was_changed_is_refused(self, store: SessionStore, clock: Clock) -> None:
        await self._write_all(store, clock, "a", "b", "c")
        cursor = (await store.page("", 1, None)).next_cursor
        assert cursor is not None
        for changed in (f"{cursor}=", f" {cursor}", f"{cursor}\n", cursor[:3]):
            with pytest.raises(InvalidRequest):
                await store.page("", 1, changed)


class SessionExpiryContract(SessionStoreFixtures):
    """Sessions are forgotten some time after their last use. The clock may be a real one: few tests, and patient."""

    TTL_S: ClassVar[float] = 2.0

    async def _pass(self, clock: Clock, share: float) -> None:
        await self.pass_time(clock, share * self.TTL_S)

    async def test_a_session_is_forgotten_so_long_after_its_last_write(self, store: SessionStore, clock: Clock) -> None:
        await write(store, S1, adding(1), clock.wall_s())
        await self._pass(clock, 0.6)
        stored = await write(store, S1, adding(2), clock.wall_s())
        await self._pass(clock, 0.6)
        assert await store.get(S1) == stored
        await self._pass(clock, 0.6)  # a read was no use
        assert await store.get(S1) is None
        assert await listed(store) == []
        assert await store.delete(S1) is False

    async def test_a_turn_that_began_keeps_its_session(self, store: SessionStore, clock: Clock) -> None:
        stored = await write(store, S1, adding(1), clock.wall_s())
        await self._pass(clock, 0.6)
        opened = await must_begin(store, S1, lease_s=10 * self.TTL_S)
        await self._pass(clock, 0.6)
        assert await listed(store) == ["s1"]
        longer = await store.commit(opened.lease, stored, adding(2), clock.wall_s())
        await self._pass(clock, 0.6)
        assert await store.get(S1) == longer

    async def test_a_session_that_expired_during_its_turn_is_not_stored_in_part(
        self, store: SessionStore, clock: Clock
    ) -> None:
        stored = await write(store, S1, adding(1), clock.wall_s())
        opened = await must_begin(store, S1, lease_s=10 * self.TTL_S)
        await self._pass(clock, 1.2)
        with pytest.raises(HistoryNotSaved):
            await store.commit(opened.lease, stored, adding(2), clock.wall_s())
        assert await store.get(S1) is None

    async def test_an_expired_session_leaves_nothing_to_the_next_of_its_id(
        self, store: SessionStore, clock: Clock
    ) -> None:
        other = SessionRef("", "s2")
        for ref in (S1, other):
            await write(store, ref, adding(1), clock.wall_s(), system_prompt="Old.")
        await self._pass(clock, 1.2)
        assert (await must_begin(store, S1, "a")).session is None
        await store.end(S1, "a")
        anew = await write(store, S1, adding(2), clock.wall_s(), system_prompt="New.")
        fork = anew.copy(other, (make_turn(3),), clock.wall_s())
        await store.create(fork)
        assert (anew.system_prompt, anew.version, anew.turns) == ("New.", 1, (make_turn(2),))
        assert await store.get(S1) == anew
        assert await store.get(other) == fork

    async def test_each_session_is_forgotten_at_its_own_time(self, store: SessionStore, clock: Clock) -> None:
        await write(store, S1, adding(1), clock.wall_s())
        await self._pass(clock, 0.6)
        await store.create(Session(S1, "").copy(SessionRef("", "s2"), (make_turn(1),), clock.wall_s()))
        await self._pass(clock, 0.6)
        assert await listed(store) == ["s2"]
        await self._pass(clock, 0.6)
        assert await listed(store) == []

    async def test_the_system_prompt_is_never_forgotten(self, store: SessionStore, clock: Clock) -> None:
        await store.set_system_prompt("You are a pirate.")
        await self._pass(clock, 1.2)
        assert await store.system_prompt() == "You are a pirate."

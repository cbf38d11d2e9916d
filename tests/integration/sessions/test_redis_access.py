"""A user of the server that may do what the store needs, and nothing else."""

import pytest

from inferapi.adapters.redis_sessions import COMMANDS
from inferapi.domain.chat import Session, SessionChange, SessionRef
from inferapi.domain.errors import SessionStoreUnavailable
from session_contract import LONG_S, S1, adding, make_turn, must_begin, write

NOW_S = 1_700_000_000.0
S2 = SessionRef("", "s2")


def give_access(server, *rules):
    server.cli("ACL", "SETUSER", "inferapi", "reset", "on", ">secret", *rules)


@pytest.fixture
def user_url(redis_server):
    """As the user ``inferapi``, who is gone after the test."""
    yield redis_server.url.replace("://", "://inferapi:secret@")
    redis_server.cli("ACL", "DELUSER", "inferapi")


async def use_everything(store):
    await store.ping()
    opened = await must_begin(store, S1, "a")
    assert await store.renew(opened.lease, LONG_S) is True
    await store.end(S1, "b")
    await store.end(S1, "a")
    await write(store, S1, adding(1), NOW_S)
    await write(store, S1, adding(2, dropped_oldest=1), NOW_S)
    stored = await write(store, S1, SessionChange(dropped_newest=1), NOW_S)
    assert await store.get(S1) == stored
    await store.create(Session(S2, "").copy(S2, [make_turn()], NOW_S))
    assert len((await store.page("", 10, None)).sessions) == 2
    assert await store.delete(S1) is True
    await store.set_system_prompt("Be brief.")
    assert await store.system_prompt() == "Be brief."


async def test_a_user_needs_the_keys_of_the_prefix_and_the_commands_of_the_list(redis_server, open_store, user_url):
    allowed = [f"+{name}" for name in COMMANDS]
    give_access(redis_server, "~inferapi:*", "-@all", *allowed)
    store = open_store(user_url)
    await use_everything(store)
    redis_server.cli("UNLINK", "inferapi:session::s2:head")
    assert (await store.page("", 10, None)).sessions == ()
    assert redis_server.cli("ZCARD", "inferapi:sessions:") == 0


async def test_a_user_needs_nothing_that_is_dangerous_or_runs_scripts(redis_server, open_store, user_url):
    give_access(redis_server, "~inferapi:*", "+@all", "-@dangerous", "-@scripting", "-@admin", "-@blocking")
    await use_everything(open_store(user_url))


async def test_a_database_of_its_own_needs_select_as_well(redis_server, open_store, user_url):
    allowed = [f"+{name}" for name in COMMANDS]
    give_access(redis_server, "~inferapi:*", "-@all", *allowed)
    with pytest.raises(SessionStoreUnavailable):
        await open_store(f"{user_url}/2").ping()
    give_access(redis_server, "~inferapi:*", "-@all", *allowed, "+select")
    await use_everything(open_store(f"{user_url}/2"))


@pytest.mark.parametrize("missing", ["exec", "watch", "rpush", "set", "pexpire", "zadd"])
async def test_a_right_that_is_missing_is_told_and_nothing_is_written_in_part(
    redis_server, open_store, user_url, missing
):
    admin = open_store(redis_server.url)
    stored = await write(admin, S1, adding(1), NOW_S)
    opened = await must_begin(admin, S1, "a")
    allowed = [f"+{name}" for name in COMMANDS if name != missing]
    give_access(redis_server, "~inferapi:*", "-@all", *allowed)
    store = open_store(user_url)
    with pytest.raises(SessionStoreUnavailable):
        await store.commit(opened.lease, stored, adding(2), NOW_S)
    assert await admin.get(S1) == stored


async def test_no_turn_begins_without_the_right_to_transactions(redis_server, open_store, user_url):
    give_access(redis_server, "~inferapi:*", "-@all", *(f"+{name}" for name in COMMANDS if name != "multi"))
    with pytest.raises(SessionStoreUnavailable):
        await open_store(user_url).begin(S1, "a", LONG_S)

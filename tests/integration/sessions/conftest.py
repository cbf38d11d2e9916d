"""Redis servers: one shared by the tests of a session, and fresh ones for those that trouble them."""

import pytest
from benchmarks.own_redis import RedisServer

from inferapi.adapters.redis_sessions import RedisSessionStore
from inferapi.adapters.system_clock import SystemClock

pytest.register_assert_rewrite("session_contract", "session_list_contract")

TTL_S = 3600.0


@pytest.fixture(scope="session")
def shared_redis_server(tmp_path_factory):
    """Whoever changes its settings changes them back."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
def redis_server(shared_redis_server):
    """The shared one, empty."""
    shared_redis_server.cli("FLUSHALL")
    return shared_redis_server


@pytest.fixture
def fresh_redis_server(tmp_path):
    """One of a test's own; it need not survive it."""
    server = RedisServer(tmp_path)
    try:
        yield server.start()
    finally:
        server.stop()


@pytest.fixture
async def open_store():
    """Make a store at a URL; it is closed after the test."""
    opened = []

    def open_at(url, ttl_s=TTL_S):
        opened.append(RedisSessionStore(url, ttl_s, SystemClock()))
        return opened[-1]

    yield open_at
    for store in opened:
        await store.aclose()

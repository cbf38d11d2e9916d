"""Redis in trouble under a running server: chats are told within 3 s, everything else goes on, all comes back."""

import time

import pytest
from live_server import TINY, until

pytestmark = pytest.mark.model
TOLD_WITHIN_S = 3.0


@pytest.fixture
def server(fresh_server, fresh_redis_server):
    return fresh_server(MODEL=TINY, SESSION_STORE_URL=fresh_redis_server.url, SESSION_LEASE_S=2).wait_ready()


def chat(server, text="Hello"):
    return server.http.post("/chat", json={"text": text, "session_id": "s1", "max_new_tokens": 4})


def history(server):
    return server.http.get("/sessions/s1").json()["full_history"]


def readiness(server):
    response = server.http.get("/health/ready")
    return response.status_code, response.json()["status"]


def check_only_chats_are_hit(server):
    started_s = time.monotonic()
    told = chat(server)
    took_s = time.monotonic() - started_s
    assert (told.status_code, told.json()["code"]) == (503, "session_store_unavailable")
    assert int(told.headers["retry-after"]) >= 1
    assert took_s < TOLD_WITHIN_S
    assert server.http.post("/infer", json={"text": "Hi", "max_new_tokens": 4}).status_code == 200
    assert server.http.get("/health/live").status_code == 200
    assert readiness(server) == (200, "degraded")


def check_all_is_well(server, expected):
    until(lambda: chat(server, "Again").status_code == 200)
    assert history(server)[: len(expected)] == expected
    assert readiness(server) == (200, "ready")


def test_redis_gone_and_back_with_its_append_only_file(server, fresh_redis_server):
    expected = chat(server).json()["full_history"]
    fresh_redis_server.kill()
    check_only_chats_are_hit(server)
    fresh_redis_server.start()
    check_all_is_well(server, expected)


def test_redis_that_was_not_there_at_the_start(fresh_server, fresh_redis_server):
    fresh_redis_server.stop()
    server = fresh_server(MODEL=TINY, SESSION_STORE_URL=fresh_redis_server.url).wait_ready()
    check_only_chats_are_hit(server)
    fresh_redis_server.start()
    check_all_is_well(server, [])


def test_redis_frozen_and_thawed(server, fresh_redis_server):
    expected = chat(server).json()["full_history"]
    fresh_redis_server.freeze()
    try:
        check_only_chats_are_hit(server)
    finally:
        fresh_redis_server.thaw()
    check_all_is_well(server, expected)


@pytest.mark.parametrize(
    ("bad", "good"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    ],
    ids=["full", "read-only"],
)
def test_redis_that_takes_no_writes(server, fresh_redis_server, bad, good):
    expected = chat(server).json()["full_history"]
    fresh_redis_server.cli(*bad)
    told = chat(server)
    assert (told.status_code, told.json()["code"]) == (503, "session_store_unavailable")
    assert history(server) == expected  # reading goes on
    assert server.http.post("/infer", json={"text": "Hi", "max_new_tokens": 4}).status_code == 200
    fresh_redis_server.cli(*good)
    check_all_is_well(server, expected)


def test_redis_frozen_in_the_middle_of_a_turn_is_told_in_the_stream(server, fresh_redis_server):
    expected = chat(server).json()["full_history"]
    with server.stream("/chat", text="Hi", session_id="s1", max_new_tokens=600, ignore_eos=True) as events:
        next(events)
        fresh_redis_server.freeze()
        try:
            *_, last = events
        finally:
            fresh_redis_server.thaw()
    assert last["error"]["code"] == "history_not_saved"
    check_all_is_well(server, expected)
    assert len(history(server)) == len(expected) + 2


def test_connections_that_are_killed_all_the_time_lose_no_turn_that_was_acknowledged(server, fresh_redis_server):
    stored = 0
    for number in range(30):
        if number % 3 == 0:
            fresh_redis_server.cli("CLIENT", "KILL", "TYPE", "normal")
        answer = chat(server, f"Question {number}")
        assert answer.status_code in {200, 503}
        stored += answer.status_code == 200
    assert stored > 0
    assert len(history(server)) == 1 + 2 * stored


@pytest.mark.parametrize(
    "spoil",
    [
        ("SET", "inferapi:session::s1:head", "no json"),
        ("SET", "inferapi:session::s1:head", '{"v":2}'),
        ("LPUSH", "inferapi:session::s1:turns", "[]"),
        ("SET", "inferapi:session::s1:turns", "x" * 1000),
        ("HSET", "inferapi:session::s1:lease", "a", "b"),
    ],
)
def test_a_spoiled_session_is_spoiled_alone_and_can_be_deleted(server, fresh_redis_server, spoil):
    chat(server)
    if spoil[0] == "HSET":
        fresh_redis_server.cli("DEL", spoil[1])
    fresh_redis_server.cli(*spoil)
    told = chat(server)
    assert (told.status_code, told.json()["code"]) == (503, "session_unreadable")
    assert told.headers["x-should-retry"] == "false"
    other = server.http.post("/chat", json={"text": "Hello", "session_id": "s2", "max_new_tokens": 4})
    assert other.status_code == 200
    assert server.http.delete("/sessions/s1").status_code == 204
    assert len(chat(server).json()["full_history"]) == 3

"""What a long conversation and many sessions take in Redis: it is bounded, and all of it ends by itself."""

import pytest
from live_server import TINY

pytestmark = pytest.mark.model

KEPT_TURNS, TURNS, TTL_S = 6, 40, 1000


def ttls(redis):
    """Seconds that each key has left, but those of the system prompt."""
    keys = redis.cli("SCAN", 0, "COUNT", 10_000)[1]
    return {key: redis.cli("TTL", key) for key in keys if key != "inferapi:system_prompt"}


def test_a_session_never_holds_more_turns_than_it_may_and_its_bytes_stop_growing(fresh_server, fresh_redis_server):
    redis = fresh_redis_server
    server = fresh_server(MODEL=TINY, SESSION_STORE_URL=redis.url, SESSION_MAX_TURNS=KEPT_TURNS).wait_ready()
    lengths, held_bytes = [], []
    for number in range(TURNS):
        body = {"text": f"Question {number:02}", "session_id": "s1", "max_new_tokens": 4, "ignore_eos": True}
        told = server.answer("/chat", body)
        lengths.append(redis.cli("LLEN", "inferapi:session::s1:turns"))
        held_bytes.append(redis.cli("MEMORY", "USAGE", "inferapi:session::s1:turns"))
    assert lengths == [min(number, KEPT_TURNS) for number in range(1, TURNS + 1)]
    kept = [f"Question {number:02}" for number in range(TURNS - KEPT_TURNS, TURNS)]
    assert [message["content"] for message in told["full_history"][1::2]] == kept
    assert max(held_bytes[TURNS // 2 :]) <= 1.5 * max(held_bytes[: TURNS // 2])
    assert server.http.get("/sessions/s1").json()["forgotten_turns"] == TURNS - KEPT_TURNS


def test_every_key_ends_by_itself_and_a_turn_gives_its_session_all_its_time_again(fresh_server, fresh_redis_server):
    redis = fresh_redis_server
    server = fresh_server(MODEL=TINY, SESSION_STORE_URL=redis.url, SESSION_TTL_S=TTL_S).wait_ready()

    def say(session_id):
        server.answer("/chat", {"text": "Hi", "session_id": session_id, "max_new_tokens": 2})

    for number in range(5):
        say(f"s{number}")
    assert len(ttls(redis)) >= 10
    assert all(ttl_s > 0 for ttl_s in ttls(redis).values())
    redis.cli("EXPIRE", "inferapi:session::s0:turns", 60)
    redis.cli("EXPIRE", "inferapi:session::s0:head", 60)
    say("s0")
    left = ttls(redis)
    assert left["inferapi:session::s0:turns"] > 60
    assert left["inferapi:session::s0:head"] > 60

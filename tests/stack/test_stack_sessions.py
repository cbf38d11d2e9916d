"""Conversations through the proxy, kept in Redis by a user who may do just that."""

from urllib.parse import urlsplit

import pytest
from redis.exceptions import AuthenticationError, NoPermissionError


@pytest.fixture
def user(api_settings):
    """Name and password of the server's user."""
    parts = urlsplit(api_settings["SESSION_STORE_URL"])
    return parts.username, parts.password


def test_everything_that_sessions_can_do_works_with_the_stacks_redis(client):
    for text in ("One", "Two"):
        said = client.post("/chat", json={"text": text, "session_id": "kept", "max_new_tokens": 2})
        assert said.status_code == 200, said.text
    assert [message["role"] for message in client.get("/sessions/kept").json()["full_history"]].count("user") == 2
    fork = client.post("/sessions/kept/fork", json={"turns": 1}).json()["session_id"]
    assert client.post("/sessions/kept/rewind", json={"turns": 1}).is_success
    listed = {session["session_id"] for session in client.get("/sessions").json()["sessions"]}
    assert {"kept", fork} <= listed
    assert client.post("/system_prompt", json={"prompt": "Be brief."}).is_success
    assert client.get("/system_prompt").json() == {"prompt": "Be brief."}
    for session_id in ("kept", fork):
        assert client.delete(f"/sessions/{session_id}").is_success
        assert client.get(f"/sessions/{session_id}").status_code == 404
    assert client.get("/health/ready").json() == {"status": "ready"}


@pytest.mark.parametrize(
    "command",
    ["FLUSHALL", "KEYS *", "CONFIG GET dir", "EVAL return 0", "ACL LIST", "GET other:key", "SHUTDOWN", "PUBLISH a b"],
)
def test_the_servers_user_may_do_nothing_else(redis, user, command):
    with pytest.raises(NoPermissionError):
        redis.ask(*user, *command.split())


def test_nobody_else_gets_in(redis, user):
    name, _ = user
    for wrong in ((name, "guessed"), ("default", ""), ("default", "guessed")):
        with pytest.raises(AuthenticationError):
            redis.ask(*wrong, "PING")
    with pytest.raises(NoPermissionError):
        redis.ask("health", "health", "GET", "inferapi:system_prompt")


def test_what_was_made_for_the_stack_is_made_once_and_kept_from_others(secrets):
    assert secrets.stat().st_mode & 0o777 == 0o700
    for name in ("api.env", "admin_key", "webui.env", "grafana.env"):
        assert (secrets / name).stat().st_mode & 0o777 == 0o600
    assert (secrets / "tls.key").read_text(encoding="utf-8").startswith("-----BEGIN")

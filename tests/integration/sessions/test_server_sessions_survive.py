"""What an acknowledged turn survives: crashes and restarts of the server, two servers on one store."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from live_server import TINY, until

pytestmark = pytest.mark.model


@pytest.fixture(params=["sqlite", "redis"])
def store_url(request, tmp_path):
    """Where both servers keep their sessions."""
    if request.param == "redis":
        return request.getfixturevalue("redis_server").url
    return f"sqlite:///{tmp_path}/sessions.db"


@pytest.fixture
def start(fresh_server, store_url):
    """Starts a server on that store."""

    def start(**env):
        env = {"MODEL": TINY, "SESSION_STORE_URL": store_url, "SESSION_LEASE_S": 2, "SESSION_WAIT_S": 30, **env}
        return fresh_server(**env, MAX_NEW_TOKENS=30000).wait_ready()

    return start


def say(server, session_id, text="Hello"):
    return server.answer("/chat", {"text": text, "session_id": session_id, "max_new_tokens": 4})


def kill(server):
    tree = server.tree()
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    until(lambda: not any(process.is_running() and process.status() != "zombie" for process in tree))


def test_turns_survive_a_server_that_is_killed_and_so_does_the_system_prompt(start):
    first = start()
    first.answer("/system_prompt", {"prompt": "You are a pirate."})
    told = [say(first, "kept", f"Question {number}") for number in range(5)][-1]
    kill(first)
    second = start()
    assert second.http.get("/sessions/kept").json()["full_history"] == told["full_history"]
    assert told["full_history"][0]["content"] == "You are a pirate."
    assert second.http.get("/system_prompt").json() == {"prompt": "You are a pirate."}
    assert say(second, "kept")["full_history"][:11] == told["full_history"]
    assert say(second, "new")["full_history"][0]["content"] == "You are a pirate."


def test_a_turn_cut_by_a_crash_is_not_there_and_its_session_is_free_soon(start):
    first = start()
    told = say(first, "cut")
    with first.stream("/chat", text="Hi", session_id="cut", max_new_tokens=20000, ignore_eos=True) as events:
        next(events)
        kill(first)
    second = start()
    after = say(second, "cut", "Again")  # waits for the lease of the dead to run out, at the most
    assert [message["content"] for message in after["full_history"][1::2]] == ["Hello", "Again"]
    assert after["full_history"][:3] == told["full_history"]


def test_a_session_is_busy_for_other_servers_while_a_turn_runs(start):
    first, second = start(), start(SESSION_WAIT_S=1)
    body = {"text": "Hello", "session_id": "shared", "max_new_tokens": 4}
    with first.stream("/chat", text="Hi", session_id="shared", max_new_tokens=20000, ignore_eos=True) as events:
        next(events)
        for _ in range(3):  # for longer than a lease lasts that nobody renews
            busy = second.http.post("/chat", json=body)
            assert (busy.status_code, busy.json()["code"]) == (409, "session_busy")
            assert int(busy.headers["retry-after"]) >= 1
    until(lambda: second.http.post("/chat", json=body).status_code == 200)


def test_turns_over_two_servers_are_stored_once_each_in_alternating_order(start):
    servers = [start(), start()]
    with ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(lambda n: say(servers[n % 2], "both", f"Question {n}"), range(20)))
    history = servers[0].http.get("/sessions/both").json()["full_history"]
    assert history == servers[1].http.get("/sessions/both").json()["full_history"]
    assert [message["role"] for message in history] == ["system"] + ["user", "assistant"] * 20
    assert sorted(message["content"] for message in history[1::2]) == sorted(f"Question {n}" for n in range(20))
    assert all(history[: len(answer["full_history"])] == answer["full_history"] for answer in answers)

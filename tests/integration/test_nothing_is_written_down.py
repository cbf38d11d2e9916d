"""Keys, prompts and answers: however a request ends, they come into no log, no journal and no body of others."""

import json
import re
import socket

import httpx
import pytest
from benchmarks.own_redis import RedisServer
from live_server import TINY

pytestmark = pytest.mark.model

KEYS = {"talker": "tlk-4f0c8f2b9d1e4a57", "operator": "opr-91b3d7a6c25f40e8"}
WRONG_KEY = "bad-77e2a90c4b6d4f13"
PROMPT, SYSTEM, STOP = "prompt-canary-31337", "system-canary-31337", "stop-canary-31337"
LONG = {"max_new_tokens": 4000, "ignore_eos": True}


@pytest.fixture
def redis(tmp_path):
    server = RedisServer(tmp_path)
    try:
        yield server.start()
    finally:
        server.stop()


def everything_told(server, headers=None):
    """The log, and what anybody may read of the server's doings."""
    told = [server.log.read_text(encoding="utf-8", errors="replace")]
    told += [server.http.get(path, headers=headers).text for path in ("/events", "/status", "/metrics", "/v1/models")]
    return "\n".join(told)


def plain_part(text):
    """The longest part that would be in a line of JSON as it is here."""
    return max(re.split(r"[^A-Za-z0-9 ]", text), key=len)


def test_no_key_right_or_wrong_is_in_a_body_the_log_the_journal_or_redis(fresh_server, redis, tmp_path):
    keys = [
        {"id": "talker", "key": KEYS["talker"], "scopes": ["infer"]},
        {"id": "operator", "key": KEYS["operator"], "scopes": ["admin"]},
    ]
    server = fresh_server(MODEL=TINY, API_KEYS=json.dumps(keys), SESSION_STORE_URL=redis.url).wait_ready()
    bodies, statuses = [], set()

    def ask(key, method, path, body=None):
        answer = server.http.request(method, path, json=body, headers={"Authorization": f"Bearer {key}"})
        bodies.append(answer.text)
        statuses.add(answer.status_code)

    for key in (*KEYS.values(), WRONG_KEY):
        ask(key, "POST", "/chat", {"text": "Hi", "session_id": "s1", "max_new_tokens": 2})
        ask(key, "POST", "/infer", {"text": ""})
        ask(key, "POST", "/load_model", {"model_name": "../etc"})
        ask(key, "POST", "/v1/chat/completions", {"model": TINY, "messages": []})
        ask(key, "GET", "/sessions/nobody")
        for path in ("/sessions", "/status", "/events", "/openapi.json"):
            ask(key, "GET", path)
    assert statuses >= {200, 400, 401, 403, 404, 422}
    redis.stop()  # so that all of it is on the disk
    stored = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"inferapi:session:talker:s1:turns" in stored
    log = server.log.read_text(encoding="utf-8", errors="replace")
    children = [str(process.environ()) for process in server.tree()]
    assert len(children) == 2
    for key in (*KEYS.values(), WRONG_KEY):
        assert not [body for body in bodies if key in body]
        assert key not in log
        assert not [environment for environment in children if key in environment]
        assert key.encode() not in stored


def test_no_prompt_and_no_answer_is_written_down_however_the_request_ends(fresh_server):
    server = fresh_server(MODEL=TINY, REQUEST_TIMEOUT_S=5, MAX_NEW_TOKENS=32000).wait_ready()
    server.answer("/system_prompt", {"prompt": SYSTEM})
    answers = [
        server.result(PROMPT, max_new_tokens=40, ignore_eos=True, stop=[STOP]),
        server.answer("/chat", {"text": PROMPT, "session_id": "s1", "max_new_tokens": 40, "ignore_eos": True})[
            "result"
        ],
    ]
    messages = [{"role": "user", "content": PROMPT}]
    completed = server.answer("/v1/chat/completions", {"model": TINY, "messages": messages, "max_tokens": 40})
    answers.append(completed["choices"][0]["message"]["content"])
    statuses = [
        server.post("/infer", {"text": PROMPT, "temperature": "hot"}).status_code,
        server.post("/infer", {"text": f"{PROMPT} " * 9000}).status_code,
        server.http.get("/infer", params={"text": PROMPT}).status_code,
        server.post("/infer", {"text": PROMPT, **LONG, "max_new_tokens": 30000}).status_code,
    ]
    assert statuses == [422, 422, 405, 504]
    with server.stream(text=PROMPT, **LONG) as events:
        answers.append(next(events)["delta"])  # and leaves
    server.wait_idle()
    with server.stream(text=PROMPT, **LONG) as events:
        next(events)
        server.kill_worker()
        *_, last = events
    assert last["error"]["code"] == "model_crashed"
    told = everything_told(server)
    assert told.count("/infer") >= 6  # the requests themselves are in the log
    said = [fragment for answer in answers if len(fragment := plain_part(answer)) >= 10]
    assert len(said) >= 2
    for canary in (PROMPT, SYSTEM, STOP, *said):
        assert canary not in told


def test_a_request_that_is_no_http_is_not_written_down_either(fresh_server):
    server = fresh_server(MODEL=TINY).wait_ready()
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port), timeout=30) as raw:
        raw.sendall(f"{PROMPT} {PROMPT}\r\n\r\n".encode())
        heard = b""
        while piece := raw.recv(65536):
            heard += piece
    assert heard.startswith(b"HTTP/1.1 400 ")
    assert PROMPT.encode() not in heard
    assert PROMPT not in server.log.read_text(encoding="utf-8", errors="replace")
    assert server.result(max_new_tokens=4)

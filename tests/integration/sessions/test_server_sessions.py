"""Sessions over real HTTP, on a real model, in the default store."""

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
from live_server import DEMO, TINY, text_of, until, write_tiny_model

pytestmark = pytest.mark.model

SMALL = "tiny/small-window"
NO_SYSTEM = "tiny/no-system-role"
PLAIN = "tiny/no-template"


@pytest.fixture(scope="module")
def session_models(models_dir):
    """A model with a window of 512 tokens, one whose template knows no system role, one without a template."""
    write_tiny_model(models_dir / SMALL, max_position_embeddings=512)
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
    )
    (write_tiny_model(models_dir / NO_SYSTEM) / "chat_template.jinja").write_text(template, encoding="utf-8")
    (write_tiny_model(models_dir / PLAIN) / "chat_template.jinja").unlink()
    yield
    for name in (SMALL, NO_SYSTEM, PLAIN):
        shutil.rmtree(models_dir / name)


@pytest.fixture(scope="module")
def tiny_server(start_server, session_models):
    server = start_server(MODEL=TINY, MAX_RESIDENT_MODELS=2, SESSION_WAIT_S=60, MAX_NEW_TOKENS=30000).wait_ready()
    yield server
    server.stop()


def say(server, session_id, text="Hello", **body):
    return server.answer("/chat", {"text": text, "session_id": session_id, "max_new_tokens": 4, **body})


def history_of(server, session_id):
    return server.http.get(f"/sessions/{session_id}").json()["full_history"]


def code_of(response):
    return response.status_code, response.json()["code"]


def test_a_session_is_listed_read_forked_rewound_and_deleted(tiny_server):
    for text in ("One?", "Two?", "Three?"):
        told = say(tiny_server, "life", text)
    http = tiny_server.http
    listed = http.get("/sessions").json()["sessions"]
    assert (listed[0]["session_id"], listed[0]["title"], listed[0]["turns"]) == ("life", "One?", 3)
    assert history_of(tiny_server, "life") == told["full_history"]
    fork = http.post("/sessions/life/fork", json={"turns": 2})
    assert fork.status_code == 201
    assert fork.json()["full_history"] == told["full_history"][:5]
    rewound = http.post("/sessions/life/rewind")
    assert rewound.json()["full_history"] == told["full_history"][:5]
    again = say(tiny_server, "life", "Three?")
    assert again["full_history"] == told["full_history"]  # greedy: the same question has the same answer
    assert http.delete("/sessions/life").status_code == 204
    assert code_of(http.get("/sessions/life")) == (404, "session_not_found")
    assert code_of(http.delete("/sessions/life")) == (404, "session_not_found")
    assert history_of(tiny_server, fork.json()["session_id"]) == told["full_history"][:5]


def test_an_exported_session_goes_on_elsewhere(tiny_server):
    told = say(tiny_server, "packed", 'Odd \u2028 text \x1f "quoted" <|im_end|> 🙂')
    document = tiny_server.http.get("/sessions/packed/export").json()
    assert code_of(tiny_server.http.post("/sessions/import", json=document)) == (409, "session_exists")
    imported = tiny_server.http.post("/sessions/import", json=document | {"session_id": "unpacked"})
    assert imported.status_code == 201
    assert imported.json()["full_history"] == told["full_history"]
    assert say(tiny_server, "unpacked", "And?")["full_history"][:3] == told["full_history"]


def test_sessions_are_paged_without_gap_or_repeat(tiny_server):
    names = {f"page-{number}" for number in range(7)}
    for name in names:
        say(tiny_server, name)
    seen, cursor = [], None
    while True:
        page = tiny_server.http.get("/sessions", params={"limit": 3} | ({"cursor": cursor} if cursor else {})).json()
        seen += [one["session_id"] for one in page["sessions"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(seen) == len(set(seen))
    assert names <= set(seen)


def test_twenty_turns_at_once_are_stored_once_each_in_alternating_order(tiny_server):
    with ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(lambda n: say(tiny_server, "crowded", f"Question {n}"), range(20)))
    history = history_of(tiny_server, "crowded")
    assert [message["role"] for message in history] == ["system"] + ["user", "assistant"] * 20
    assert sorted(message["content"] for message in history[1::2]) == sorted(f"Question {n}" for n in range(20))
    for answer in answers:
        assert history[: len(answer["full_history"])] == answer["full_history"]


def test_sessions_do_not_wait_for_each_other(tiny_server):
    with tiny_server.stream("/chat", text="Hello", session_id="slow", max_new_tokens=20000, ignore_eos=True) as events:
        next(events)
        assert len(say(tiny_server, "quick")["full_history"]) == 3
    tiny_server.wait_idle()


def test_a_client_that_leaves_in_the_middle_leaves_no_turn_and_lets_the_next_one_in(tiny_server):
    told = say(tiny_server, "left")
    long = {"text": "Hello", "session_id": "left", "max_new_tokens": 20000, "ignore_eos": True}
    with tiny_server.stream("/chat", **long) as events:
        next(events)
    assert history_of(tiny_server, "left") == told["full_history"]
    assert len(say(tiny_server, "left")["full_history"]) == 5


def test_a_delete_during_a_turn_wins_and_the_client_is_told(tiny_server):
    say(tiny_server, "doomed")
    with tiny_server.stream("/chat", text="Hi", session_id="doomed", max_new_tokens=2000, ignore_eos=True) as events:
        next(events)
        assert tiny_server.http.delete("/sessions/doomed").status_code == 204
        *_, last = events
    assert last["error"]["code"] == "history_not_saved"
    assert tiny_server.http.get("/sessions/doomed").status_code == 404


def test_a_delete_during_the_very_first_turn_wins_too(tiny_server):
    with tiny_server.stream("/chat", text="Hi", session_id="unborn", max_new_tokens=2000, ignore_eos=True) as events:
        next(events)
        assert tiny_server.http.delete("/sessions/unborn").status_code == 204
        *_, last = events
    assert last["error"]["code"] == "history_not_saved"
    assert tiny_server.http.get("/sessions/unborn").status_code == 404


def test_a_repeated_turn_is_one_turn_with_the_first_answer(tiny_server):
    body = {"text": "Once?", "max_new_tokens": 16, "temperature": 5.0}
    headers = {"Idempotency-Key": "4f5c0f5e-once"}
    with ThreadPoolExecutor(4) as clients:
        posts = [clients.submit(tiny_server.http.post, "/chat", json=body, headers=headers) for _ in range(4)]
        answers = [post.result() for post in posts]
    assert [answer.status_code for answer in answers] == [200] * 4
    assert len({answer.content for answer in answers}) == 1
    say(tiny_server, answers[0].json()["session_id"], "More")
    assert tiny_server.http.post("/chat", json=body, headers=headers).content == answers[0].content
    other = tiny_server.http.post("/chat", json=body | {"text": "Else?"}, headers=headers)
    assert code_of(other) == (422, "invalid_request")


def test_three_hundred_turns_never_end_in_an_error(tiny_server):
    left_out = []
    for number in range(300):
        told = say(tiny_server, "endless", f"Question {number}", model=SMALL, details=True, ignore_eos=True)
        left_out.append(told["details"]["usage"]["dropped_turns"])
    assert len(told["full_history"]) == 601
    assert left_out[0] == 0
    assert left_out == sorted(left_out)
    assert left_out[-1] > 200


def test_a_message_beyond_the_context_window_is_refused_and_the_session_stays_usable(tiny_server):
    told = say(tiny_server, "patient", model=SMALL)
    body = {"text": "word " * 600, "session_id": "patient", "max_new_tokens": 4, "model": SMALL}
    refused = tiny_server.http.post("/chat", json=body)
    assert code_of(refused) == (422, "context_length_exceeded")
    assert refused.json()["prompt_tokens"] > refused.json()["context_window_tokens"] == 512
    assert say(tiny_server, "patient", model=SMALL)["full_history"][:3] == told["full_history"]


def test_a_session_goes_on_with_the_template_of_every_model(tiny_server):
    told = say(tiny_server, "travelling", "One?")
    for number, name in enumerate((NO_SYSTEM, PLAIN, SMALL, TINY), start=2):
        assert tiny_server.answer("/change_model", {"new_model_name": name})
        told = say(tiny_server, "travelling", f"Question {number}", details=True)
        assert told["details"]["model"] == name
        assert len(told["full_history"]) == 1 + 2 * number
    turns = tiny_server.http.get("/sessions/travelling").json()["turns"]
    assert [turn["model"] for turn in turns] == [TINY, NO_SYSTEM, PLAIN, SMALL, TINY]


def test_a_new_system_prompt_is_for_new_sessions_only(tiny_server):
    before = say(tiny_server, "old")["full_history"][0]
    try:
        tiny_server.answer("/system_prompt", {"prompt": "You are a pirate."})
        assert say(tiny_server, "old")["full_history"][0] == before
        assert say(tiny_server, "new")["full_history"][0] == {"role": "system", "content": "You are a pirate."}
    finally:
        tiny_server.answer("/system_prompt", {"prompt": before["content"]})


def test_the_store_lies_in_the_data_folder_for_its_owner_only(tiny_server):
    say(tiny_server, "kept")
    folder = tiny_server.log.parent / "inferapi"
    files = [file for file in folder.iterdir() if file.name.startswith("sessions.db")]
    assert files
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_a_second_turn_reuses_what_the_first_one_computed(server):
    text = "Tell me a story about a dragon and a princess, and let it be a long one. " * 8
    first = server.answer("/chat", {"text": text, "session_id": "warm", "max_new_tokens": 80, "details": True})
    second = server.answer("/chat", {"text": "Go on.", "session_id": "warm", "max_new_tokens": 8, "details": True})
    assert first["details"]["model"] == DEMO
    assert first["details"]["usage"]["cached_tokens"] == 0
    reused = second["details"]["usage"]["cached_tokens"]
    computed_before = first["details"]["usage"]["total_tokens"]
    assert computed_before - 128 < reused <= computed_before
    assert reused < second["details"]["usage"]["prompt_tokens"]


def test_a_turn_that_ran_when_the_server_was_told_to_end_is_saved(fresh_server, tmp_path, session_models):
    url = f"sqlite:///{tmp_path}/sessions.db"
    server = fresh_server(MODEL=TINY, SESSION_STORE_URL=url).wait_ready()
    with server.stream("/chat", text="Hi", session_id="last", max_new_tokens=1000, ignore_eos=True) as events:
        first = next(events)
        server.process.terminate()
        *deltas, reply, done = events
    assert done == "[DONE]"
    assert text_of([first, *deltas]) == reply["result"]
    until(lambda: server.process.poll() is not None)
    after = fresh_server(MODEL=TINY, SESSION_STORE_URL=url).wait_ready()
    assert history_of(after, "last") == reply["full_history"]

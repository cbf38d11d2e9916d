"""Ids that the server makes: nobody guesses one, and nobody sees from one what others there are."""

from __future__ import annotations

import re

SESSIONS = 1000


async def test_a_thousand_ids_are_long_all_different_and_have_no_pattern(client, stage):
    await stage.load()
    await client.post("/chat", json={"text": "Hi", "session_id": "s1"})
    ids = [(await client.post("/sessions/s1/fork")).json()["session_id"] for _ in range(SESSIONS)]
    started = (await client.post("/chat", json={"text": "Hi"})).json()["session_id"]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{22,128}", one) for one in (*ids, started))
    assert len(started) == len(ids[0])
    assert len(set(ids)) == SESSIONS
    assert ids != sorted(ids)
    assert len({one[:4] for one in ids}) > 0.98 * SESSIONS  # no shared beginning, such as the time or a name
    assert len({one[-4:] for one in ids}) > 0.98 * SESSIONS
    shortest = min(map(len, ids))
    assert min(len({one[place] for one in ids}) for place in range(shortest)) > 40  # of 64: no place stands still

"""Faults under load: the scenarios of ``benchmarks/faults`` in small, with everything counted and nothing timed."""

import psutil
import pytest
from benchmarks.faults.crowds import crowd, flood
from benchmarks.faults.leaving import abandon
from benchmarks.faults.load import Load, client
from benchmarks.faults.mix import Mixed
from benchmarks.faults.outages import crashes, store_away
from benchmarks.own_redis import RedisServer
from live_server import TINY, has_ended, until

pytestmark = pytest.mark.model

ABANDONED, LONG_TOKENS = 40, 7000  # four of them fill the KV cache
IDLE, SLOW, BESIDE = 60, 20, 5
FLOOD, BATCH, QUEUE = 40, 2, 4
MIXED = 150


def api_process(server):
    return psutil.Process(server.process.pid)


def assert_nothing_is_left(server, descriptors):
    """It lives, works, has nothing in flight, and its files are closed."""
    assert server.http.get("/health/live").status_code == 200
    assert server.result(max_new_tokens=4, ignore_eos=True)
    server.wait_idle()
    until(lambda: api_process(server).num_fds() <= descriptors)


@pytest.fixture
def started(fresh_server):
    """Start a server with the tiny model; it, and its open files once it has answered."""

    def start(**env):
        server = fresh_server(MODEL=TINY, **env).wait_ready()
        server.answer("/chat", {"text": "Hi", "max_new_tokens": 4})  # the store has its files open from now on
        return server, api_process(server).num_fds()

    return start


@pytest.fixture
def redis(tmp_path):
    server = RedisServer(tmp_path)
    try:
        yield server.start()
    finally:
        server.stop()


async def test_requests_that_are_left_all_at_once_leave_nothing_behind_and_the_next_is_answered(started):
    server, descriptors = started(MAX_NEW_TOKENS=8000)
    worker = server.worker_id()
    found = await abandon(server.url, requests=ABANDONED, new_tokens=LONG_TOKENS)
    assert found.running + found.waiting == ABANDONED
    assert found.running > 0
    assert found.waiting > 0
    assert (found.tally.left, found.tally.answered, found.tally.lost) == (ABANDONED, 1, 0)
    assert found.next_answer.label == "answered"
    assert server.worker_id() == worker
    assert_nothing_is_left(server, descriptors)


async def test_silent_and_slow_connections_keep_nobody_from_an_answer(started):
    server, descriptors = started()
    files = api_process(server).num_fds
    found = await crowd(server.url, idle=IDLE, slow=SLOW, interval_s=0.05, requests=BESIDE, count_descriptors=files)
    assert (found.beside.answered, found.beside.wrong, found.beside.lost) == (BESIDE + 1, {}, 0)
    assert (found.probes.answered, found.probes.lost) == (BESIDE + 1, 0)
    assert found.ends.total() == IDLE + SLOW
    assert not [end for end in found.ends if end.endswith("not accepted")]
    before, during, after = found.descriptors
    assert after <= before < during
    assert found.slow_bytes > SLOW
    assert_nothing_is_left(server, descriptors)


async def test_a_flood_is_answered_or_refused_to_the_last_request(started):
    server, descriptors = started(MAX_BATCH=BATCH, MAX_QUEUE=QUEUE)
    tally = await flood(server.url, requests=FLOOD, new_tokens=2000)
    assert (tally.sent, tally.answered + tally.refused, tally.lost, tally.wrong) == (FLOOD, FLOOD, 0, {})
    assert list(tally.refusals) == ["503 queue_full"]
    assert tally.untold == {}
    assert tally.answered >= BATCH + QUEUE
    assert_nothing_is_left(server, descriptors)


@pytest.mark.parametrize("how", ["frozen", "killed"])
async def test_while_redis_is_away_chats_are_refused_and_afterwards_no_acknowledged_turn_is_missing(
    fresh_server, redis, how
):
    server = fresh_server(MODEL=TINY, SESSION_STORE_URL=redis.url, SESSION_LEASE_S=2).wait_ready()
    worker = server.worker_id()
    begin, end = {"frozen": (redis.freeze, redis.thaw), "killed": (redis.kill, redis.start)}[how]
    found = await store_away(server.url, chatters=4, others=2, rounds=1, begin=begin, end=end)
    assert (found.chats.lost, found.chats.wrong) == (0, {})
    assert (found.others.lost, found.others.refused, found.others.wrong) == (0, 0, {})
    assert found.chats.refused >= 4
    assert found.others_during >= 2
    assert found.readiness == "degraded"
    assert [found.turns[what] for what in ("missing", "doubled", "out of order")] == [0, 0, 0]
    assert server.worker_id() == worker
    server.wait_idle()


async def test_a_worker_killed_twice_under_load_is_told_to_its_clients_and_loses_no_acknowledged_turn(fresh_server):
    server = fresh_server(MODEL=TINY).wait_ready()
    first = server.worker_id()
    found = await crashes(server.url, clients=6, kills=2, rounds=1, new_tokens=200, kill=server.kill_worker)
    assert (found.tally.lost, found.tally.wrong) == (0, {})
    assert found.told >= 2
    assert found.next_answer.label == "answered"
    assert [found.turns[what] for what in ("missing", "doubled", "out of order")] == [0, 0, 0]
    assert server.worker_id() != first
    assert len(server.workers()) == 1
    server.wait_idle()


async def test_of_a_mixed_load_nothing_is_lost_and_nothing_unforeseen_comes(started):
    server, descriptors = started(MAX_BATCH=4, MAX_QUEUE=6)
    mixed = [Mixed(seed, TINY) for seed in range(12)]
    async with client(server.url, len(mixed)) as http, Load(http, mixed) as load:
        await load.until(lambda tally: tally.sent >= MIXED)
    assert (load.tally.lost, load.tally.wrong, load.tally.server_errors) == (0, {}, {})
    assert load.tally.answered > MIXED / 2
    assert load.tally.sent == sum(sum(one.kinds.values()) for one in mixed)
    assert_nothing_is_left(server, descriptors)


def test_a_stop_ends_an_idle_server_and_its_worker(fresh_server):
    server = fresh_server(MODEL=TINY).wait_ready()
    tree = server.tree()
    assert len(tree) == 2
    server.process.terminate()
    assert server.process.wait(60) in {0, -15}
    assert all(has_ended(process) for process in tree)

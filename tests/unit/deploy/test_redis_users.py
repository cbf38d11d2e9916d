"""The users of the stack's Redis: what the store sends, and nothing else."""

from __future__ import annotations

import pytest

from compose_file import REPOSITORY, service
from inferapi.adapters.redis_sessions import COMMANDS


@pytest.fixture
def users() -> dict[str, list[str]]:
    """The rules of each user."""
    lines = (REPOSITORY / "deploy/redis/users.acl.template").read_text(encoding="utf-8").splitlines()
    return {name: rules for user, name, *rules in map(str.split, lines) if user == "user"}


def test_the_servers_user_may_do_what_the_store_needs_on_its_own_keys(users):
    rules = users["inferapi"]
    assert sorted(rule[1:] for rule in rules if rule[0] == "+") == sorted(COMMANDS)
    assert [rule for rule in rules if rule[0] == "~"] == ["~inferapi:*"]
    assert [rule for rule in rules if rule[0] in "#>"] == ["#${REDIS_PASSWORD_SHA256}"]
    assert "nopass" not in rules
    assert rules.index("-@all") < rules.index("+exec")


def test_nobody_else_may_more_than_ping(users):
    assert set(users) == {"default", "inferapi", "health"}
    assert "off" in users["default"]
    assert [rule for rule in users["default"] + users["health"] if rule[0] in "+~&"] == ["+ping"]


def test_redis_keeps_an_append_only_file_and_evicts_nothing():
    name, *words = service("redis")["command"]
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert name == "redis-server"
    assert options == {
        "--dir": "/data",
        "--aclfile": "/run/secrets/redis_acl",
        "--appendonly": "yes",
        "--appendfsync": "everysec",
        "--save": "",
        "--maxmemory": "1gb",
        "--maxmemory-policy": "noeviction",
    }

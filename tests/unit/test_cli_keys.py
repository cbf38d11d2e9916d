"""``inferapi keys new``: what it prints is a key, and the entry that lets it in."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from typer.testing import CliRunner

from inferapi.cli import app
from inferapi.settings import Settings

pytestmark = pytest.mark.usefixtures("bare_environment")


def new(*options: str):
    return CliRunner().invoke(app, ["keys", "new", *options])


def key_and_entry(*options: str) -> tuple[str, dict[str, object]]:
    result = new(*options)
    assert result.exit_code == 0, result.output
    key, entry = result.stdout.splitlines()
    return key, json.loads(entry)


def test_it_prints_a_key_and_the_entry_with_its_digest():
    key, entry = key_and_entry("--id", "ann")
    assert re.fullmatch(r"inferapi_[A-Za-z0-9_-]{43}", key)
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert entry == {"id": "ann", "sha256": digest, "scopes": ["infer"]}


def test_the_entry_is_a_setting_as_it_is(monkeypatch):
    key, entry = key_and_entry("--id", "ops", "--scope", "infer", "--scope", "admin")
    monkeypatch.setenv("INFERAPI_API_KEYS", json.dumps([entry]))
    (setting,) = Settings().api_keys
    assert (setting.id, setting.scopes) == ("ops", {"infer", "admin"})
    assert setting.digest == hashlib.sha256(key.encode()).digest()


def test_every_key_is_another_one_and_so_is_its_id():
    made = [key_and_entry() for _ in range(3)]
    assert len({key for key, _ in made}) == len({entry["id"] for _, entry in made}) == 3
    assert all(re.fullmatch(r"key-[0-9a-f]{8}", str(entry["id"])) for _, entry in made)


def test_the_key_itself_is_in_one_line_of_the_output_alone():
    result = new("--id", "ann")
    key = result.stdout.splitlines()[0]
    assert (result.output.count(key), key in result.stderr) == (1, False)


@pytest.mark.parametrize(
    "options", [("--id", ""), ("--id", "a b"), ("--id", "x" * 65), ("--id", "a\nb"), ("--scope", "root")]
)
def test_what_is_no_id_or_no_scope_ends_it_with_status_2_and_without_a_key(options):
    result = new(*options)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr
    assert "Traceback" not in result.output


def test_a_scope_given_twice_is_one():
    assert key_and_entry("--scope", "admin", "--scope", "admin")[1]["scopes"] == ["admin"]

"""deploy/prepare.sh: what it makes fits together, and is made once."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from compose_file import REPOSITORY, compose
from inferapi.settings import Settings


def prepare(folder: Path, *host: str) -> None:
    subprocess.run(["bash", REPOSITORY / "deploy/prepare.sh", folder, *host], check=True, capture_output=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("deploy") / "secrets"
    prepare(folder)
    return folder


@pytest.fixture
def settings(made, bare_environment, monkeypatch) -> Settings:
    """Of a server that is given api.env as Compose reads it: what stands between single quotes is as it is."""
    for line in (made / "api.env").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition("=")
        monkeypatch.setenv(name, value.removeprefix("'").removesuffix("'"))
    return Settings()


def test_it_makes_every_secret_that_the_stack_mounts_and_every_file_of_variables(made):
    found = compose()
    needed = {secret["file"] for secret in found["secrets"].values()}
    for one in found["services"].values():
        needed |= {entry["path"] for entry in one.get("env_file", []) if entry.get("required", True)}
    assert {Path(name).parent for name in needed} == {Path("deploy/secrets")}
    assert {Path(name).name for name in needed} | {"admin_key"} == set(contents(made))


def test_the_server_knows_the_digests_of_the_keys_and_gives_each_no_more_than_it_needs(made, settings):
    known = {key.id: (key.digest, set(key.scopes)) for key in settings.api_keys}
    webui = next(
        line.partition("=")[2]
        for line in (made / "webui.env").read_text(encoding="utf-8").splitlines()
        if line.startswith("OPENAI_API_KEY=")
    )
    keys = {
        "admin": ((made / "admin_key").read_text(encoding="utf-8").strip(), {"infer", "admin"}),
        "webui": (webui, {"infer"}),
        "metrics": ((made / "metrics_key").read_text(encoding="utf-8"), set()),
    }
    assert known == {name: (hashlib.sha256(key.encode()).digest(), scopes) for name, (key, scopes) in keys.items()}
    assert len({key for key, _ in keys.values()}) == 3


def test_redis_has_the_digest_of_the_servers_password(made, settings):
    url, _, host = settings.session_store_url.rpartition("@")
    assert host == "redis:6379"
    assert url.startswith("redis://inferapi:")
    digest = hashlib.sha256(url.rpartition(":")[2].encode()).hexdigest()
    users = (made / "redis.acl").read_text(encoding="utf-8")
    assert f"user inferapi on #{digest} " in users
    assert "$" not in users


def test_another_run_replaces_nothing_and_makes_what_is_missing(made):
    before = contents(made)
    (made / "tls.key").unlink()
    (made / "tls.crt").unlink()
    prepare(made, "llm.example.org")
    after = contents(made)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {"tls.key", "tls.crt"}
    prepare(made)
    assert contents(made) == after


@pytest.mark.parametrize(("present", "missing"), [("tls.crt", "tls.key"), ("tls.key", "tls.crt")])
def test_half_a_certificate_is_left_alone_and_what_is_missing_is_said(tmp_path, present, missing):
    (tmp_path / present).write_text("of my own", encoding="utf-8")
    command = ["bash", REPOSITORY / "deploy/prepare.sh", tmp_path]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"has {present} and no {missing}" in done.stderr
    assert contents(tmp_path) == {present: b"of my own"}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("llm.example.org", "DNS:llm.example.org"),
        ("192.0.2.7", "IP Address:192.0.2.7"),
        ("2001:db8::7", "IP Address:2001:DB8:0:0:0:0:0:7"),
        ("[2001:db8::7]", "IP Address:2001:DB8:0:0:0:0:0:7"),
    ],
)
def test_the_certificate_is_of_the_host(tmp_path, host, expected):
    prepare(tmp_path / "secrets", host)
    command = ["openssl", "x509", "-in", tmp_path / "secrets" / "tls.crt", "-noout", "-ext", "subjectAltName"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert said.splitlines()[1].strip() == expected

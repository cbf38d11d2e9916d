"""A real server and a stub hub: a model comes over HTTP and serves, failures have their status, the token stays."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
from live_server import PATIENCE_S, Server, until, write_tiny_model

from stub_hub import VALID, StubHub, unused_address

pytestmark = pytest.mark.model

TINY = "stub/tiny"


class HubServer(Server):
    """A server whose hub is a stub, with an empty models folder and no model preloaded."""

    def __init__(self, folder, endpoint, token, **env):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{port}", folder / f"server-{port}.log"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("INFERAPI_", "HF_"))}
        kept |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hub"), "HUGGING_FACE_HUB_TOKEN": token}
        kept |= {"INFERAPI_PORT": str(port), "INFERAPI_MODELS_DIR": str(folder / "models"), "INFERAPI_THREADS": "1"}
        kept |= {"INFERAPI_LOG_LEVEL": "debug", **env}
        with self.log.open("wb") as log:
            command = [Path(sys.executable).with_name("inferapi"), "serve"]
            self.process = subprocess.Popen(command, env=kept, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False)

    def wait_ready(self):
        """Until it answers: it is not ready without a model."""
        until(self._is_alive)
        return self

    def _is_alive(self):
        assert self.process.poll() is None, f"it ended while starting:\n{self.log_tail()}"
        try:
            return self.http.get("/health/live").status_code == 200
        except httpx.TransportError:
            return False

    def refusal(self, name):
        """Status, code and text of a load that fails."""
        problem = self.post("/load_model", {"model_name": name}).json()
        return problem["status"], problem["code"], problem["detail"]


@pytest.fixture(scope="module")
def tiny_folder(demo_folder, tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="module")
def hub():
    stub = StubHub()
    yield stub
    stub.close()


@pytest.fixture(scope="module")
def start(tmp_path_factory, hub):
    """Start servers of this file."""
    servers = []

    def start_one(endpoint=hub.url, token=VALID, **env):
        servers.append(HubServer(tmp_path_factory.mktemp("hub_server"), endpoint, token, **env))
        return servers[-1].wait_ready()

    yield start_one
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def server(start):
    return start()


def seen_by(process):
    """What others on the machine can see of a process."""
    try:
        return " ".join([*process.cmdline(), *process.environ().values()])
    except psutil.NoSuchProcess:
        return ""


def test_a_model_comes_from_the_hub_and_serves_and_the_next_time_nobody_is_asked(server, hub, tiny_folder):
    hub.add(TINY, tiny_folder)
    server.answer("/load_model", {"model_name": TINY})
    assert server.model_line()["name"] == TINY
    first = server.result(max_new_tokens=4, ignore_eos=True, temperature=0)
    assert first
    assert [one for one in hub.requests if one.authorization != f"Bearer {VALID}"] == []
    server.answer("/unload_model", {})
    connections = hub.connections
    server.answer("/load_model", {"model_name": TINY})
    assert server.result(max_new_tokens=4, ignore_eos=True, temperature=0) == first
    assert hub.connections == connections
    # The token: with the API process alone, and in no line of its log.
    assert server.workers()
    assert not [process for process in server.tree() if VALID in seen_by(process)]
    assert VALID in seen_by(psutil.Process(server.process.pid))
    assert VALID not in server.log.read_text(encoding="utf-8")


WRONG = {
    "gated": ({"gated": True}, 403, "model_gated"),
    "private": ({"private": True}, 404, "model_not_found"),
    "failing": ({"status": 500}, 503, "hub_unavailable"),
    "garbage": ({"listing": b"<html>"}, 503, "hub_unavailable"),
    "broken-off": ({"cuts": [9], "cuts_always": True}, 503, "download_incomplete"),
    "silent": ({"silent_listing": True}, 504, "hub_timeout"),
    "huge": ({"announced": {"model.safetensors": 2**60}}, 507, "insufficient_storage"),
}


@pytest.mark.parametrize("name", WRONG)
def test_each_failure_of_the_hub_has_its_status_and_code(server, hub, tiny_folder, name):
    wrong, status, code = WRONG[name]
    hub.add(f"stub/{name}", tiny_folder, **wrong)
    found_status, found_code, detail = server.refusal(f"stub/{name}")
    assert (found_status, found_code) == (status, code), detail
    assert VALID not in detail
    assert hub.url not in detail
    assert VALID not in server.log.read_text(encoding="utf-8")


def test_an_unknown_model_and_an_unknown_revision_are_a_404(server, hub, tiny_folder):
    hub.add("stub/known", tiny_folder)
    assert server.refusal("stub/unknown")[:2] == (404, "model_not_found")
    assert server.refusal("stub/known@nope")[:2] == (404, "model_not_found")


def test_a_token_that_the_hub_refuses_is_told_and_not_shown(start, hub, tiny_folder):
    hub.add("stub/gated", tiny_folder, gated=True)
    server = start(token="hf_expired_0123456789")
    status, code, detail = server.refusal("stub/gated")
    assert (status, code) == (403, "model_gated")
    assert "refused HUGGING_FACE_HUB_TOKEN as invalid" in detail
    assert "hf_expired" not in detail + server.log.read_text(encoding="utf-8")


def test_a_hub_that_nobody_listens_for_is_a_503(start):
    assert start(endpoint=unused_address()).refusal(TINY)[:2] == (503, "hub_unavailable")


def test_offline_an_uncached_model_is_a_404_and_the_hub_is_not_asked(start, hub, tiny_folder):
    hub.add(TINY, tiny_folder)
    server = start(HF_HUB_OFFLINE="1")
    connections = hub.connections
    assert server.refusal(TINY)[:2] == (404, "model_not_found")
    assert hub.connections == connections

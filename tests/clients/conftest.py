"""Real servers for the real clients, which are told nothing by the environment and ask no network but loopback."""

import json
import os

import pytest
from client_side import HERMES, REASONER, base_url, write_models
from live_server import DEMO, DEMO_FOLDER, PATIENCE_S, TINY, Server

_NOT_OURS = ("OPENAI_", "LITELLM_", "LANGCHAIN_", "LANGSMITH_", "HF_", "HUGGING_FACE_")
for _name in [name for name in os.environ if name.startswith(_NOT_OURS)]:
    del os.environ[_name]
os.environ |= {
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}

_running = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Show the end of the servers' logs beside a failure."""
    report = yield
    if report.failed:
        report.sections += [(f"log of {server.url}", server.log_tail()) for server in _running]
    return report


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory):
    """All the models; without the demo model nothing here can run, and a skip would hide that."""
    if not (DEMO_FOLDER / "config.json").exists():
        pytest.fail(f"the demo model {DEMO} is missing: run `make model` first", pytrace=False)
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def start_server(models_dir, tmp_path_factory):
    """Start a server, ``env`` without its prefix; it ends with the session at the latest."""

    def start(**env):
        server = Server(tmp_path_factory.mktemp("server"), models_dir, **env)
        _running.append(server)
        return server

    yield start
    for server in _running:
        server.stop()
    _running.clear()


@pytest.fixture(scope="session")
def server(start_server):
    """The shared one: every model of ours has a place, the demo model is loaded."""
    allowed = json.dumps([DEMO, TINY, HERMES, REASONER, "nobody/*"])
    return start_server(ALLOWED_MODELS=allowed, MAX_RESIDENT_MODELS=4).wait_ready()


@pytest.fixture
def fresh_server(start_server):
    """Start servers of a test's own; they need not survive it."""
    mine = []

    def start(**env):
        mine.append(start_server(**env))
        return mine[-1]

    yield start
    for server in mine:
        server.stop()
        _running.remove(server)


@pytest.fixture
def client(server):
    """The official client; it asks once, so that a refusal is seen as it is."""
    from openai import OpenAI  # noqa: PLC0415 - after the environment above

    with OpenAI(base_url=base_url(server), api_key="none", max_retries=0, timeout=PATIENCE_S) as client:
        yield client


@pytest.fixture
async def async_client(server):
    """The same for coroutines."""
    from openai import AsyncOpenAI  # noqa: PLC0415 - after the environment above

    async with AsyncOpenAI(base_url=base_url(server), api_key="none", max_retries=0, timeout=PATIENCE_S) as client:
        yield client

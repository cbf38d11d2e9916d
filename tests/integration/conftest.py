"""Real servers for the integration tests: one shared by all, and fresh ones for those that reconfigure or end it."""

import shutil

import pytest
from live_server import DEMO, DEMO_FOLDER, TINY, Server, write_tiny_model

pytest.register_assert_rewrite(
    "contracts", "session_contract", "session_list_contract"
)  # before a test imports it: its asserts then show their values

_running = []


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Show the end of the servers' logs beside a failure."""
    report = yield
    if report.failed:
        report.sections += [(f"log of {server.url}", server.log_tail()) for server in _running]
    return report


@pytest.fixture(scope="session")
def demo_folder():
    """The demo model; without it nothing here can run, and a skip would hide that."""
    if not (DEMO_FOLDER / "config.json").exists():
        pytest.fail(f"the demo model {DEMO} is missing: run `make model` first", pytrace=False)
    return DEMO_FOLDER


@pytest.fixture(scope="session")
def models_dir(demo_folder, tmp_path_factory):
    """The demo model, a tiny one, and some that must not or cannot be loaded."""
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(demo_folder, models / DEMO)
    tiny = write_tiny_model(models / TINY)

    broken = shutil.copytree(tiny, models / "tiny" / "broken") / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:100_000])
    # Its files are in order, so the old model is unloaded for it; then transformers refuses it.
    write_tiny_model(models / "tiny" / "misfit", model_type="no_such_family", architectures=["NoSuchModel"])
    write_tiny_model(models / "tiny" / "own-code", auto_map={"AutoModelForCausalLM": "code.Model"})
    pickled = shutil.copytree(tiny, models / "tiny" / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    return models


@pytest.fixture(scope="session")
def start_server(models_dir, tmp_path_factory):
    """Start a server, ``env`` without its prefix; whoever calls stops it."""

    def start(**env):
        server = Server(tmp_path_factory.mktemp("server"), models_dir, **env)
        _running.append(server)
        return server

    yield start
    for server in _running:
        server.stop()
    _running.clear()


def _stop(server):
    server.stop()
    _running.remove(server)


@pytest.fixture(scope="session")
def server(start_server):
    """The shared one: the demo model, greedy, one model at a time. Whoever changes it changes it back."""
    server = start_server(ALLOWED_MODELS='["HuggingFaceTB/*", "tiny/*", "nobody/*"]', MAX_NEW_TOKENS=32000)
    yield server.wait_ready()
    _stop(server)


@pytest.fixture(scope="session")
def narrow_server(start_server):
    """A shared one that runs one request at a time and lets four wait, in float32."""
    server = start_server(MAX_BATCH=1, MAX_QUEUE=4, DTYPE="float32", MAX_NEW_TOKENS=32000)
    yield server.wait_ready()
    _stop(server)


@pytest.fixture
def fresh_server(start_server):
    """Start servers of a test's own; they need not survive it."""
    mine = []

    def start(**env):
        mine.append(start_server(**env))
        return mine[-1]

    yield start
    for server in mine:
        _stop(server)


@pytest.fixture
def client(server):
    """A plain HTTP client of the shared server."""
    return server.http


@pytest.fixture
def and_back(server):
    """The shared server as it was, whatever the test did to its model."""
    yield
    server.answer("/load_model", {"model_name": DEMO})
    server.answer("/change_inactivity_threshold", {"new_threshold": 300})

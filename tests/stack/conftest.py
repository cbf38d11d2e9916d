"""The stack without Docker: the proxy's own configuration, Redis with its own users, and real servers behind."""

import subprocess
from contextlib import contextmanager

import pytest
from live_server import DEMO, DEMO_FOLDER, TINY, Server, write_tiny_model
from nginx_proxy import PREFIX, NginxProxy
from stack_redis import StackRedis

from compose_file import REPOSITORY
from stub_hub import StubHub

READ_TIMEOUT_S = 1  # stands in for the minutes of docker-compose.yml

_running = []


@contextmanager
def _watched(server):
    """Ready within it, and ended after it; its log is shown beside a failure."""
    _running.append(server)
    try:
        server.wait_ready()
        yield
    finally:
        server.stop()
        _running.remove(server)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Show the end of all logs beside a failure."""
    report = yield
    if report.failed:
        report.sections += [(f"log of {one.url}", one.log_tail()) for one in _running]
    return report


@pytest.fixture(scope="session")
def secrets(tmp_path_factory):
    """What deploy/prepare.sh makes, the certificate included."""
    folder = tmp_path_factory.mktemp("secrets") / "made"
    subprocess.run(["bash", REPOSITORY / "deploy" / "prepare.sh", folder, "localhost"], check=True)
    return folder


@pytest.fixture(scope="session")
def api_settings(secrets):
    """The settings of api.env, without their prefix, as Compose reads them."""
    lines = (secrets / "api.env").read_text(encoding="utf-8").splitlines()
    pairs = (line.removeprefix("INFERAPI_").partition("=")[::2] for line in lines)
    return {name: value.strip("'") for name, value in pairs}


@pytest.fixture(scope="session")
def admin_key(secrets):
    return (secrets / "admin_key").read_text(encoding="utf-8").strip()


@pytest.fixture(scope="session")
def redis(tmp_path_factory, secrets):
    server = StackRedis(tmp_path_factory.mktemp("redis"), secrets)
    yield server
    server.stop()


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    if not (DEMO_FOLDER / "config.json").exists():
        pytest.fail(f"the demo model {DEMO} is missing: run `make model` first", pytrace=False)
    models = tmp_path_factory.mktemp("models")
    write_tiny_model(models / TINY)
    return models


@pytest.fixture(scope="session")
def start_proxy(tmp_path_factory, secrets):
    """Start proxies, before an address of loopback; they end with the session."""
    mine = []

    def start(upstream, **values):
        mine.append(NginxProxy(tmp_path_factory.mktemp("nginx"), secrets, upstream, **values))
        _running.append(mine[-1])
        return mine[-1]

    yield start
    for proxy in mine:
        proxy.stop()
        _running.remove(proxy)


@pytest.fixture(scope="session")
def server(tmp_path_factory, tiny_models, redis, api_settings, admin_key):
    """As the stack runs it: below a prefix, with keys, in Redis, and believing its proxy."""
    store_url = api_settings["SESSION_STORE_URL"].replace("@redis:6379", f"@127.0.0.1:{redis.port}")
    settings = api_settings | {"SESSION_STORE_URL": store_url, "FORWARDED_ALLOW_IPS": '["127.0.0.1"]'}
    server = Server(tmp_path_factory.mktemp("server"), tiny_models, MODEL=TINY, ROOT_PATH=PREFIX, **settings)
    server.http.headers["Authorization"] = f"Bearer {admin_key}"
    with _watched(server):
        yield server


@pytest.fixture(scope="session")
def proxy(start_proxy, server):
    return start_proxy(server.url.removeprefix("http://"), prefix=PREFIX)


@pytest.fixture
def client(proxy, admin_key):
    """Of the proxy, with every right."""
    with proxy.client(admin_key) as client:
        yield client


@pytest.fixture(scope="session")
def hub():
    stub = StubHub()
    yield stub
    stub.close()


@pytest.fixture(scope="session")
def bare_server(tmp_path_factory, tiny_models, hub):
    """At the root, without keys and with nobody to believe; it asks the stub hub."""
    online = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url}
    server = Server(tmp_path_factory.mktemp("server"), tiny_models, MODEL=TINY, environment=online)
    with _watched(server):
        yield server


@pytest.fixture(scope="session")
def impatient_proxy(start_proxy, bare_server):
    """At the root; it gives up soon, but for loads."""
    return start_proxy(bare_server.url.removeprefix("http://"), PROXY_READ_TIMEOUT_S=READ_TIMEOUT_S)


@pytest.fixture
def impatient_client(impatient_proxy):
    with impatient_proxy.client() as client:
        yield client

"""``rediss://``: the store speaks TLS, and to the server that it was told of alone."""

import asyncio
import ssl
import subprocess
import traceback

import pytest
from redis_proxy import redis_proxy

from inferapi.domain.errors import SessionStoreUnavailable
from session_contract import S1, adding, write

NOW_S = 1_700_000_000.0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Of ``localhost``, signed by itself; the file holds its key too."""
    file = tmp_path_factory.mktemp("tls") / "localhost.pem"
    made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", file, "-out", file.with_suffix(".crt")]
    subprocess.run(["openssl", *made.split(), *names], check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + file.with_suffix(".crt").read_bytes())
    return file


@pytest.fixture
async def tls_port(redis_server, certificate):
    """Redis behind TLS."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with redis_proxy(redis_server.port, context) as (_, url):
        yield url.rpartition(":")[2]


async def test_a_store_speaks_tls(tls_port, certificate, redis_server, open_store):
    store = open_store(f"rediss://localhost:{tls_port}?ssl_ca_certs={certificate.with_suffix('.crt')}")
    stored = await write(store, S1, adding(1), NOW_S)
    assert await open_store(redis_server.url).get(S1) == stored
    await store.aclose()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_a_certificate_that_nobody_vouches_for_or_of_another_host_is_refused(
    tls_port, certificate, open_store, host
):
    trusted = f"?ssl_ca_certs={certificate.with_suffix('.crt')}" if host == "127.0.0.1" else ""
    store = open_store(f"rediss://{host}:{tls_port}{trusted}")
    with pytest.raises(SessionStoreUnavailable) as caught:
        await store.ping()
    text = "".join(traceback.format_exception(caught.value))
    assert "CERTIFICATE_VERIFY_FAILED" in text
    assert host not in text


async def test_a_server_without_tls_is_told_in_time(redis_server, open_store):
    async with asyncio.timeout(4.0):
        with pytest.raises(SessionStoreUnavailable):
            await open_store(f"rediss://localhost:{redis_server.port}").ping()

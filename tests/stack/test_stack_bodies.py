"""Bodies go on as they come, so that the server refuses them while they come, and its refusals arrive."""

import select

import pytest
from bare_client import answer, connected, head_of_post
from live_server import TINY, Server, until
from nginx_proxy import PREFIX

MIB = 1 << 20
TRIES = 20  # what is refused while it is still being sent is a race: of so many none may be lost


def rejected(server, code):
    """How often the server has counted a refusal of that code."""
    start = f'inferapi_requests_rejected_total{{reason="{code}"}} '
    lines = server.http.get("/metrics").text.splitlines()
    return next((float(line.removeprefix(start)) for line in lines if line.startswith(start)), 0.0)


@pytest.fixture(scope="module")
def hasty_server(tmp_path_factory, tiny_models):
    """It gives a body a second."""
    server = Server(tmp_path_factory.mktemp("server"), tiny_models, MODEL=TINY, RECEIVE_TIMEOUT_S=1)
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


def test_who_has_no_key_is_told_so_before_the_body_has_come(proxy):
    for _ in range(TRIES):
        with connected(proxy) as connection:
            connection.sendall(head_of_post(f"{PREFIX}/infer", f"Content-Length: {MIB}") + b" " * 1000)
            status, headers, told = answer(connection)
        assert (status, told["code"], headers["www-authenticate"]) == (401, "unauthenticated", "Bearer")


@pytest.mark.parametrize("is_chunked", [False, True], ids=["declared", "chunked"])
def test_who_has_no_key_and_goes_on_sending_is_told_so(proxy, is_chunked):
    with proxy.client() as stranger:
        for _ in range(TRIES):
            content = (b" " * 65_536 for _ in range(MIB // 65_536)) if is_chunked else b" " * MIB
            response = stranger.post("/infer", content=content, headers={"Content-Type": "application/json"})
            assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")


def test_a_body_that_dribbles_in_gets_the_servers_own_refusal_and_is_counted(start_proxy, hasty_server):
    proxy = start_proxy(hasty_server.url.removeprefix("http://"))
    before = rejected(hasty_server, "receive_timeout")
    with connected(proxy) as connection:
        connection.sendall(head_of_post("/infer", "Content-Length: 1000"))

        def dribbled():
            connection.sendall(b" ")
            return select.select([connection], [], [], 0.1)[0]

        until(dribbled)
        status, _, told = answer(connection)
    assert (status, told["code"], told["timeout_s"]) == (408, "receive_timeout", 1)
    assert rejected(hasty_server, "receive_timeout") == before + 1

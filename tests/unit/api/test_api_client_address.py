from __future__ import annotations

import re

import httpx
import pytest

from inferapi.api.client_address import client_address


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (("192.0.2.7", 40000), "192.0.2.7"),
        (("2001:DB8::0001", 0), "2001:db8::1"),
        (("fe80::1%eth0\nforged", 0), "fe80::1"),
        (("unknown", 0), "-"),
        (('192.0.2.7", "level": "error', 0), "-"),
        (("", 0), "-"),
        (None, "-"),
    ],
)
def test_an_address_is_told_and_no_other_text(client, expected):
    assert client_address({"type": "http", "client": client}) == expected


def test_a_scope_without_a_client_has_none():
    assert client_address({"type": "http"}) == "-"


async def test_the_access_log_tells_the_address_and_the_path_without_the_proxys(stage, caplog):
    transport = httpx.ASGITransport(stage.app(), client=("192.0.2.7", 1), root_path="/llm")
    with caplog.at_level("DEBUG", "inferapi.access"):
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.get("/llm/health/live")).status_code == 200
            assert (await client.get("/llm/status")).status_code == 200
    told = [
        (record.levelname, *re.sub(r"\d+ ms", "N ms", record.getMessage()).split(" in ")) for record in caplog.records
    ]
    assert told == [
        ("DEBUG", "GET '/health/live' 200", "N ms for 192.0.2.7"),
        ("INFO", "GET '/status' 200", "N ms for 192.0.2.7"),
    ]

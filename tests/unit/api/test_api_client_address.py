from __future__ import annotations

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

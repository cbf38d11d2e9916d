"""A client of the proxy that says what it likes, byte by byte."""

import http.client
import json
import socket
from contextlib import contextmanager

from live_server import PATIENCE_S


@contextmanager
def connected(proxy):
    """A connection to the proxy, in TLS."""
    with (
        socket.create_connection(("127.0.0.1", proxy.port), PATIENCE_S) as raw,
        proxy.trust.wrap_socket(raw, server_hostname="localhost") as connection,
    ):
        yield connection


def head_of_post(path, *headers):
    """Line and headers of a request with JSON."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def answer(connection):
    """Status, headers and JSON of what comes."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, response.headers, json.loads(response.read())

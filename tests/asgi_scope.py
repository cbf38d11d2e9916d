"""What an ASGI server tells the application of a request."""

from __future__ import annotations


def post_scope(path: str, *headers: tuple[bytes, bytes]) -> dict:
    """Of a POST of JSON on HTTP/1.1; ``headers`` say how long the body is."""
    return {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json"), *headers],
        "server": ("test", 80),
        "client": ("test", 1),
        "http_version": "1.1",
        "scheme": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
    }

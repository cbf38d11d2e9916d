"""One streamed answer over HTTP/1.1, with the least work per piece: the client shares the cores with the server.

A general client costs several times as much per piece. What is here understands just what the servers send: a
status line, headers, a body in chunks or up to the end of the connection, and in it lines that begin with ``data:``.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping

HOST = "127.0.0.1"


class Refused(Exception):
    """The server's answer is no stream that can be counted: an error status, an error event, or a stream cut short."""


class EventStream(asyncio.Protocol):
    """Sends one request and gives every event to ``on_event``, with the time at which its bytes arrived.

    ``done`` ends when the answer is complete, with :class:`Refused` if it is no good.
    """

    def __init__(self, request: bytes, on_event: Callable[[float, dict[str, object]], None]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._on_event = on_event
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._body = bytearray()
        self._in_body = False
        self._is_chunked = False
        self._chunk_left_bytes = 0
        self._status = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a TCP connection is one
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Read as far as it goes."""
        arrived_s = time.perf_counter()
        self._received += data
        try:
            if self._in_body or self._read_head():
                self._read_body()
                self._read_lines(arrived_s)
        except (Refused, ValueError) as error:
            self._end(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of an answer, or of the hope for one."""
        if self._status >= 400:
            self._end(Refused(f"{self._status} {bytes(self._body[:500])!r}"))
        elif self._in_body and not self._is_chunked and exc is None:
            self._end(None)
        else:
            self._end(Refused(f"the stream was cut ({exc or 'no end'})"))

    def _read_head(self) -> bool:
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return False
        status, *headers = bytes(self._received[:end]).lower().split(b"\r\n")
        del self._received[: end + 4]
        self._status = int(status.split()[1])
        self._is_chunked = any(h.startswith(b"transfer-encoding:") and h.endswith(b"chunked") for h in headers)
        self._in_body = True
        return True

    def _read_body(self) -> None:
        if not self._is_chunked:
            self._body += self._received
            self._received.clear()
            return
        while self._received:
            if self._chunk_left_bytes == 0:
                end = self._received.find(b"\r\n")
                if end < 0:
                    return
                size_bytes = int(self._received[:end], 16)
                del self._received[: end + 2]
                if size_bytes == 0:
                    self._finish_body()
                    return
                self._chunk_left_bytes = size_bytes + 2  # the line break behind it
            part = self._received[: self._chunk_left_bytes]
            del self._received[: len(part)]
            self._body += part[: max(self._chunk_left_bytes - 2, 0)]
            self._chunk_left_bytes -= len(part)

    def _finish_body(self) -> None:
        if self._status < 400:
            asyncio.get_running_loop().call_soon(self._end, None)  # after the lines that came with it
        elif self._transport is not None:
            self._transport.close()

    def _read_lines(self, arrived_s: float) -> None:
        if self._status >= 400:
            return
        while (end := self._body.find(b"\n")) >= 0:
            line = bytes(self._body[:end]).strip()
            del self._body[: end + 1]
            if line.startswith(b"data:") and line != b"data: [DONE]":
                event = json.loads(line[5:])
                if event.get("error") is not None:
                    raise Refused(str(event["error"])[:500])
                self._on_event(arrived_s, event)

    def _end(self, error: Exception | None) -> None:
        if not self.done.done():
            if error is None:
                self.done.set_result(None)
            else:
                self.done.set_exception(error)
        if self._transport is not None:
            self._transport.close()


def encode(port: int, path: str, body: Mapping[str, object], headers: Mapping[str, str] | None = None) -> bytes:
    """A POST with a JSON body, on a connection of its own."""
    content = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", f"Host: {HOST}:{port}", "Content-Type: application/json", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines += [f"Content-Length: {len(content)}", "", ""]
    return "\r\n".join(lines).encode() + content


async def stream(port: int, request: bytes, on_event: Callable[[float, dict[str, object]], None]) -> None:
    """Send a request and read its answer to the end.

    Raises:
        OSError: nobody listens there.
        Refused: see there.
    """
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_connection(lambda: EventStream(request, on_event), HOST, port)
    try:
        await protocol.done
    finally:
        transport.close()

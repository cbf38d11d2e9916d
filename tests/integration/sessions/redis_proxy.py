"""A connection to Redis that somebody stands in the way of: counts round trips, and loses what a test wants lost."""

import asyncio
from contextlib import asynccontextmanager, suppress

_CHUNK_BYTES = 1 << 20


class RedisProxy:
    """Forwards bytes between clients and the server at ``port``.

    Attributes:
        round_trips: how often a client spoke after the server had.
        fates: what happens to the next requests that have an EXEC, one each; those after them pass.
            ``lose request`` and ``lose reply`` break the connection before and after the server ran it;
            ``late`` breaks it for the client, and hands the request to the server at ``deliver_late``.
        is_black_hole: nothing is forwarded any more, and no connection ends.
    """

    def __init__(self, port):
        self._port = port
        self._late = []
        self.round_trips = 0
        self.fates = []
        self.is_black_hole = False

    async def deliver_late(self):
        """Let the server have what is late, and wait until it has answered: the answers."""
        answers = []
        for request, reader, writer in self._late:
            writer.write(request)
            await writer.drain()
            answers.append(await reader.read(_CHUNK_BYTES))
        return answers

    async def serve(self, reader, writer):
        """One client, until it or the server leaves."""
        redis_reader, redis_writer = await asyncio.open_connection("127.0.0.1", self._port)
        replying = asyncio.create_task(self._forward_replies(redis_reader, writer))
        is_late = False
        try:
            while request := await reader.read(_CHUNK_BYTES):
                self.round_trips += 1
                while not replying.done() and not request.endswith(b"\r\n"):
                    request += await reader.read(_CHUNK_BYTES)
                fate = self.fates.pop(0) if self.fates and b"EXEC" in request else "pass"
                if self.is_black_hole:
                    continue
                if fate == "lose request":
                    return
                if fate != "pass":
                    replying.cancel()
                    await asyncio.gather(replying, return_exceptions=True)
                if fate == "late":
                    self._late.append((request, redis_reader, redis_writer))
                    is_late = True
                    return
                redis_writer.write(request)
                if fate == "lose reply":
                    await redis_reader.read(1)  # it was run
                    return
        finally:
            replying.cancel()
            writer.close()
            if not is_late:
                redis_writer.close()

    async def _forward_replies(self, reader, writer):
        with suppress(OSError):
            while reply := await reader.read(_CHUNK_BYTES):
                writer.write(reply)
        writer.close()

    def forget_late(self):
        for _, _, writer in self._late:
            writer.close()


@asynccontextmanager
async def redis_proxy(port, tls=None):
    """A proxy, behind a context of TLS if one is given, and the URL of it."""
    proxy = RedisProxy(port)
    serving = set()

    async def serve(reader, writer):
        serving.add(asyncio.current_task())
        with suppress(OSError, asyncio.CancelledError):
            await proxy.serve(reader, writer)
        serving.discard(asyncio.current_task())

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield proxy, f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        proxy.forget_late()
        server.close()
        for task in list(serving):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

"""Connections that say nothing, or a byte at a time."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass

OPEN, CLOSED = "still open", "closed by the server"


@dataclass(slots=True)
class Connection:
    """A client that sends part of its request at once and the rest a byte at a time.

    Attributes:
        kind: what it stands for.
        at_once, slowly: what it sends.
        end: what became of it: ``still open``, ``closed by the server``, the status of an answer, or ``not accepted``.
        sent_bytes: how far it came.
    """

    kind: str
    at_once: bytes = b""
    slowly: bytes = b""
    end: str = OPEN
    sent_bytes: int = 0

    async def hold(
        self, address: tuple[str, int], interval_s: float, held: asyncio.Barrier, over: asyncio.Event
    ) -> None:
        """Connect, pass the barrier with all others, and send until all is said, it is over, or the server answers."""
        try:
            reader, writer = await asyncio.open_connection(*address)
        except OSError:
            self.end = "not accepted"
            await held.wait()
            return
        await held.wait()
        hearing, ending = asyncio.create_task(_first_words(reader)), asyncio.create_task(over.wait())
        talking = asyncio.create_task(self._talk(writer, interval_s))
        try:
            await asyncio.wait({hearing, ending}, return_when=asyncio.FIRST_COMPLETED)
            if hearing.done():
                self.end = hearing.result()
        finally:
            for task in (hearing, ending, talking):
                task.cancel()
            await asyncio.gather(hearing, ending, talking, return_exceptions=True)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _talk(self, writer: asyncio.StreamWriter, interval_s: float) -> None:
        pieces = [self.at_once] if self.at_once else []
        pieces += [self.slowly[place : place + 1] for place in range(len(self.slowly))]
        with suppress(OSError):  # whoever hears learns why
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                self.sent_bytes += len(piece)
                await asyncio.sleep(interval_s)


async def _first_words(reader: asyncio.StreamReader) -> str:
    """The status of the answer, once its first line is there."""
    try:
        line = await reader.readline()
    except (OSError, ValueError):  # ValueError: a line without an end
        return CLOSED
    parts = line.split(b" ")
    return parts[1].decode("ascii", "replace").strip() if line.startswith(b"HTTP/") and len(parts) > 1 else CLOSED

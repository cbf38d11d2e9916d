"""Exchanges with a Redis server: several commands in one write, all their replies in one read.

``redis.asyncio`` gives the connections, their pool and the protocol. Its pipelines are not used, for two reasons. A
connection that breaks while keys are watched is told as ``WatchError``, the same as a transaction that did not run;
here the one means that nobody knows and the other that nothing was written. And WATCH and the reads after it need
not be a round trip each.
"""

from __future__ import annotations

import asyncio
import errno
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,  # noqa: A004 - what redis calls a broken connection; the built-in one is an OSError
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from inferapi.domain.errors import SessionStoreUnavailable

ANSWER_S = 2.2
"""Every operation has its result within this time, whatever the server does."""

BROKEN = (ConnectionError, RedisTimeoutError, OSError)
"""A connection broke: what was sent last may have been carried out, or not."""

_SOCKET_S = 1.0  # to connect, to write, and to read one reply: two attempts fit within ANSWER_S
_CONNECTIONS = 64

Command = tuple[str | bytes | int | float, ...]
Reply = Any  # bytes, an integer, None, a ResponseError, or a list of these

R = TypeVar("R")


class Exchange:
    """One connection, taken from the pool."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._is_reading = False
        self._is_watching = False

    async def ask(self, *commands: Command) -> list[Reply]:
        """Send commands together; one reply each, an error among them being the reply to its command."""
        connection = self._connection
        self._is_watching |= any(name == "WATCH" for name, *_ in commands)
        self._is_reading = True
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        replies: list[Reply] = []
        for _ in commands:
            try:
                replies.append(await connection.read_response())
            except ResponseError as error:
                replies.append(error)
        self._is_reading = False
        return replies

    async def transact(self, *commands: Command) -> list[Reply] | None:
        """Run commands as one transaction; ``None`` if a watched key changed, and nothing was run.

        An error in the list is the reply to its command; the others were run all the same.

        Raises:
            ResponseError: the server refused it; nothing was run.
        """
        *queued, replies = await self.ask(("MULTI",), *commands, ("EXEC",))
        self._is_watching = False
        for reply in (*queued, replies):  # the first error says why; EXEC's own says only that there was one
            if isinstance(reply, ResponseError):
                raise reply
        return list(replies) if replies is not None else None

    async def leave(self) -> None:
        """Forget what is watched, before somebody else has the connection."""
        if self._is_watching:
            await self.ask(("UNWATCH",))
            self._is_watching = False

    async def close_if_unclean(self) -> None:
        """Disconnect if replies are still to come, or keys still watched."""
        if self._is_reading or self._is_watching:
            await self._connection.disconnect(nowait=True)


class RedisServer:
    """The server at a URL; connects at the first use.

    At most 64 connections are open; whoever needs another waits for one.

    Raises:
        ValueError: the URL is malformed, or has an option that is none.
    """

    def __init__(self, url: str) -> None:
        parsed: dict[str, Any] = dict(parse_url(url))
        for ours in ("max_connections", "timeout", "protocol", "decode_responses", "health_check_interval"):
            parsed.pop(ours, None)
        parsed |= {"socket_timeout": _SOCKET_S, "socket_connect_timeout": _SOCKET_S, "retry_on_timeout": False}
        self._pool = BlockingConnectionPool(
            max_connections=_CONNECTIONS,
            timeout=ANSWER_S,
            protocol=2,  # and no driver info: a new connection costs no trip beside AUTH and SELECT
            driver_info=None,
            retry=Retry(NoBackoff(), 0),  # a command is never repeated blindly
            **parsed,
        )
        self._is_closed = False
        try:
            self._pool.make_connection()  # type: ignore[no-untyped-call]  # connects to nothing, but looks at its options
        except (TypeError, RedisError) as error:
            raise ValueError("the Redis URL has an option that is none") from error

    @asynccontextmanager
    async def exchange(self) -> AsyncGenerator[Exchange]:
        """A connection of one's own, connected. Left in an orderly way it is used again.

        Raises:
            RedisError, OSError: there is none to be had, or it broke.
        """
        if self._is_closed:
            raise ConnectionError("closed")
        connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]  # only half typed
        exchange = Exchange(connection)
        try:
            yield exchange
            await exchange.leave()
        finally:
            await exchange.close_if_unclean()
            await asyncio.shield(self._pool.release(connection))

    async def run(self, work: Callable[[Exchange], Awaitable[R]], *, attempts: int = 2) -> R:
        """Do ``work``, anew if its connection broke: it must be harmless to repeat.

        Raises:
            SessionStoreUnavailable: it could not be done within ``ANSWER_S``.
        """
        async with answering():
            for _ in range(attempts - 1):
                with suppress(ConnectionError):
                    async with self.exchange() as exchange:
                        return await work(exchange)
            async with self.exchange() as exchange:
                return await work(exchange)

    async def aclose(self) -> None:
        """Close every connection. Idempotent."""
        self._is_closed = True
        async with answering():
            await self._pool.aclose()


@asynccontextmanager
async def answering() -> AsyncGenerator[None]:
    """Whatever fails inside, or takes longer than ``ANSWER_S``, becomes ``SessionStoreUnavailable``."""
    try:
        async with asyncio.timeout(ANSWER_S):
            yield
    except (RedisError, OSError) as error:  # asyncio's TimeoutError is an OSError
        raise SessionStoreUnavailable from RedisError(_told(error))


def _told(error: BaseException) -> str:
    """What went wrong, without the server's address, its credentials and what was to be stored.

    The library's own words name the host, and a server quotes the arguments of a command that it does not know.
    """
    name = type(error).__name__
    said_by_server = isinstance(error, (ResponseError, AuthenticationError, BusyLoadingError))
    if said_by_server and not isinstance(error, AskError):
        return f"{name}: {str(error).partition(', with args')[0]}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return f"{name}: {cause.reason}"
        if isinstance(cause, OSError) and (code := errno.errorcode.get(cause.errno or 0)):
            return f"{name}: {code}"
        cause = cause.__cause__ or cause.__context__
    return name

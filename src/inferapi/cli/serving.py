"""``inferapi serve``: the server in this process, and its end in order."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from types import FrameType

import typer
import uvicorn
from pydantic import ValidationError
from pydantic_settings import SettingsError

from inferapi.cli.connections import ConnectionLimits, connections_within
from inferapi.container import NoGpuError, StoreUrlError, TelemetryError
from inferapi.domain.errors import InferapiError
from inferapi.main import create, several_processes
from inferapi.settings import Settings

# Longer than clients and proxies keep an idle connection (httpx 5 s, nginx 60 s): whoever closes first must not be
# the one that may be sent a request at the same moment.
_KEEP_ALIVE_S = 75
_LAST_WORDS_S = 2  # for responses to leave once their work has ended
_SIGNAL_POLL_S = 0.1  # uvicorn's own: a signal handler may only set a flag


def serve(settings_given: dict[str, object], *, workers: int | None = None) -> None:
    """Run until SIGTERM or Ctrl-C; a setting that is no good ends it with status 2."""
    several = several_processes(os.environ, None if workers is None else str(workers))
    if several is not None:
        typer.echo(several, err=True)
        raise typer.Exit(2)
    try:
        settings = Settings(**settings_given)  # type: ignore[arg-type]  # each option has its field's type
        application = create(settings)
    except ValidationError as error:
        for entry in error.errors():
            name = "_".join(map(str, entry["loc"])).upper()
            typer.echo(f"INFERAPI_{name}: {entry['msg'].removeprefix('Value error, ')}", err=True)
        raise typer.Exit(2) from error
    except (NoGpuError, StoreUrlError, TelemetryError, InferapiError, SettingsError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    if not (settings.is_loopback or settings.api_keys or settings.allow_anonymous):
        typer.echo(
            f"Refusing to bind {settings.host}: anybody who can reach it could load models and read answers. "
            "Set INFERAPI_API_KEYS, or bind 127.0.0.1; INFERAPI_ALLOW_ANONYMOUS=true where a proxy authenticates.",
            err=True,
        )
        raise typer.Exit(2)
    _greet(settings)
    limits = ConnectionLimits(settings.max_connections, settings.receive_timeout_s)
    config = uvicorn.Config(
        application,
        host=settings.host,
        port=settings.port,
        http=connections_within(limits, lambda error: application.state.metrics.request_rejected(error.code)),
        ws="none",  # there are no routes for it
        root_path=settings.root_path,  # the proxy took it off; FastAPI reads it from the scope
        proxy_headers=bool(settings.forwarded_allow_ips),  # uvicorn's own default believes whoever is on loopback
        forwarded_allow_ips=[str(network) for network in settings.forwarded_allow_ips],
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_LAST_WORDS_S,
    )
    DrainingServer(
        config,
        drain=application.state.drain,
        abort=application.state.abort,
        write_timeout_s=settings.stream_write_timeout_s,
    ).run()


class DrainingServer(uvicorn.Server):
    """Drains before it stops to listen: probes see it, new requests are told, and running streams end properly."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        drain: Callable[[], Awaitable[None]],
        abort: Callable[[], Awaitable[None]],
        write_timeout_s: float,
    ) -> None:
        super().__init__(config)
        self._drain = drain
        self._abort = abort
        self._write_timeout_s = write_timeout_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; the kernel ends a connection whose client takes nothing any more: those accepted inherit it."""
        await super().startup(sockets)
        for server in self.servers:
            for listening in server.sockets:
                listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * self._write_timeout_s))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End at the first signal in order, at the second at once."""
        if self.should_exit:
            self.force_exit = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the application finish, then close."""
        draining = asyncio.ensure_future(self._drain())
        while not draining.done() and not self.force_exit:
            await asyncio.wait({draining}, timeout=_SIGNAL_POLL_S)
        if not draining.done():
            await self._abort()  # then nobody is left to wait for
        await asyncio.gather(draining, return_exceptions=True)
        await super().shutdown(sockets)


def _greet(settings: Settings) -> None:
    if settings.logs_as_text:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        typer.echo(f"inferapi is starting on http://{host}:{settings.port}, its manual on /docs. Try:\n")
        typer.echo(f"  curl -s http://{host}:{settings.port}/chat -H 'Content-Type: application/json' \\")
        if settings.api_keys:
            typer.echo("    -H 'Authorization: Bearer <your key>' \\")
        typer.echo("""    -d '{"text": "What is the capital of France?"}'\n""")

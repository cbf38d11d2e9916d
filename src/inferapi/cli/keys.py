"""``inferapi keys``: keys are made here, and shown once; a server gets their digests alone."""

from __future__ import annotations

import hashlib
import json
import secrets
from enum import StrEnum
from typing import Annotated

import typer
from pydantic import ValidationError

from inferapi.settings import ApiKeySetting

app = typer.Typer(no_args_is_help=True, help="API keys for INFERAPI_API_KEYS.")

_PREFIX = "inferapi_"  # by which programs that look for leaked keys know one
_KEY_BYTES = 32
_ID_BYTES = 4


class KeyScope(StrEnum):
    """What a key may be for."""

    INFER = "infer"
    ADMIN = "admin"


@app.command()
def new(
    key_id: Annotated[
        str | None, typer.Option("--id", help="What sessions belong to, and logs name. Default: a random one.")
    ] = None,
    scopes: Annotated[
        list[KeyScope] | None, typer.Option("--scope", help="May be given twice. Default: infer.", show_default=False)
    ] = None,
) -> None:
    """Make a key. Standard output gets two lines: the key, which is kept nowhere, and its entry with the digest."""
    key = _PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    digest = hashlib.sha256(key.encode()).hexdigest()
    wanted = sorted({scope.value for scope in scopes or [KeyScope.INFER]})
    entry = {"id": key_id if key_id is not None else f"key-{secrets.token_hex(_ID_BYTES)}", "sha256": digest}
    try:
        ApiKeySetting.model_validate(entry | {"scopes": wanted})
    except ValidationError as error:
        typer.echo("An id is 1 to 64 of A-Za-z0-9._~-", err=True)
        raise typer.Exit(2) from error
    typer.echo("The key, shown this once: its owner sends it as 'Authorization: Bearer <key>'.", err=True)
    typer.echo(key)
    typer.echo("Its entry, one of the JSON list INFERAPI_API_KEYS:", err=True)
    typer.echo(json.dumps(entry | {"scopes": wanted}))

"""The command line: ``inferapi serve`` is the server, the other commands are clients of one."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from inferapi.cli import keys
from inferapi.cli.loading import LoadRequest, load_model
from inferapi.settings import Settings

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Serve Hugging Face language models over HTTP.")
app.add_typer(keys.app, name="keys")

_Url = Annotated[str | None, typer.Option(help="Of the server. Default: from INFERAPI_HOST and INFERAPI_PORT.")]
_Key = Annotated[
    str | None,
    typer.Option("--key", envvar="INFERAPI_API_KEY", help="API key with the admin scope.", show_default=False),
]
_Json = Annotated[bool, typer.Option("--json", help="Print every event as a line of JSON.")]


def _settings_help() -> str:
    lines = ["Start the server. Settings come from the environment:", ""]
    for name, field in Settings.model_fields.items():
        default = f" (default: {field.default})" if field.default is not None and not field.default_factory else ""
        lines += [f"INFERAPI_{name.upper()}: {field.description}{default}", ""]
    return "\n".join([*lines, "HUGGING_FACE_HUB_TOKEN (or HF_TOKEN): for private and gated models."])


@app.command(help=_settings_help())
def serve(
    host: Annotated[str | None, typer.Option(help="Overrides INFERAPI_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Overrides INFERAPI_PORT.")] = None,
    model: Annotated[str | None, typer.Option(help="Overrides INFERAPI_MODEL.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that serve. It is 1, and more are refused.", show_default=False)
    ] = None,
) -> None:
    """Run until SIGTERM or Ctrl-C."""
    from inferapi.cli import serving  # noqa: PLC0415 - the other commands need not wait for the whole server

    given = {"host": host, "port": port, "model": model}
    serving.serve({name: value for name, value in given.items() if value is not None}, workers=workers)


@app.command()
def load(
    name: Annotated[str, typer.Argument(help="org/name, optionally with @revision.")],
    *,
    change: Annotated[bool, typer.Option("--change", help="Replace the current model.")] = False,
    dtype: Annotated[str | None, typer.Option(help="auto, bfloat16, float16 or float32.")] = None,
    quantization: Annotated[
        str | None, typer.Option(help="int8 or int4, or none for unquantized weights. Default: the server's choice.")
    ] = None,
    pin: Annotated[bool, typer.Option("--pin", help="Keep it until it is asked to go.")] = False,
    url: _Url = None,
    key: _Key = None,
    as_json: _Json = False,
) -> None:
    """Load a model on a running server, and show how far it is. Ctrl-C leaves; the load goes on."""
    fields: dict[str, object] = {}
    if dtype is not None:
        fields["dtype"] = dtype
    if quantization is not None:
        fields["quantization"] = None if quantization == "none" else quantization
    if pin:
        fields["pinned"] = True
    raise typer.Exit(
        load_model(LoadRequest(url or _default_url(), name, change=change, fields=fields, key=key), as_json=as_json)
    )


def _default_url() -> str:
    try:
        settings = Settings()
    except (ValidationError, SettingsError) as error:
        typer.echo(f"A setting in the environment is no good; give --url. {type(error).__name__}", err=True)
        raise typer.Exit(2) from error
    host = "127.0.0.1" if settings.host in {"0.0.0.0", "::"} else settings.host  # noqa: S104 - compared, not bound
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def main() -> None:
    """Entry point of the ``inferapi`` command."""
    app()

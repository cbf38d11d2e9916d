"""The ASGI factory: settings, container, app. ``uvicorn --factory inferapi.main:create``."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from fastapi import FastAPI

from inferapi.container import Container
from inferapi.logs import configure_logging
from inferapi.settings import Settings

_COMMANDS = frozenset({"uvicorn", "gunicorn", "hypercorn", "granian", "fastapi"})
_CANNOT_START = 3  # uvicorn and gunicorn give up at this status, and start a process anew at others


def create(settings: Settings | None = None) -> FastAPI:
    """Build the application from given settings, or from the environment: that is how an ASGI server calls it.

    Raises:
        SystemExit: the ASGI server would have several processes; stderr says why that cannot be.
    """
    if settings is None:
        reason = several_processes(os.environ, _workers_option(sys.argv))
        if reason is not None:
            sys.stderr.write(f"{reason}\n")
            raise SystemExit(_CANNOT_START)
        settings = Settings()
    configure_logging(settings.log_level, as_text=settings.logs_as_text)
    app: FastAPI = Container(settings=settings).app()
    return app


def several_processes(environ: Mapping[str, str], workers: str | None) -> str | None:
    """Why a server cannot start like this: ``--workers``, or else ``WEB_CONCURRENCY``, is more than 1.

    Args:
        environ: the environment.
        workers: what was given as ``--workers``, which goes before the variable, as the ASGI servers have it.
    """
    name, told = "--workers", workers
    if told is None:
        name, told = "WEB_CONCURRENCY", environ.get("WEB_CONCURRENCY", "").strip()
    if not told or (told.isdecimal() and int(told) <= 1):
        return None
    return (
        f"{name} is {told!r}, and inferapi serves from one process. Each of several would load models of its own into "
        "the same memory, and requests would meet now the models of one and now those of another; queues, limits and "
        "what is known of models are counted in one process. INFERAPI_MAX_BATCH says how many requests a model runs at "
        "once. For more, start a server a machine, with a common INFERAPI_SESSION_STORE_URL."
    )


def _workers_option(argv: Sequence[str]) -> str | None:
    """The value of ``--workers`` on the command line of an ASGI server; other programs may mean something else."""
    program = Path(argv[0]) if argv else Path()
    name = program.parent.name if program.name == "__main__.py" else program.stem
    told = None
    if name in _COMMANDS:
        for option, value in pairwise([*argv[1:], ""]):
            if option in {"--workers", "-w"}:
                told = value
            elif option.startswith("--workers="):
                told = option.partition("=")[2]
            elif re.fullmatch(r"-w\d+", option):
                told = option[2:]
    return told

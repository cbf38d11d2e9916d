"""``inferapi load``: a load on a running server, drawn as a progress bar where there is a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import httpx
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

_CONNECT_S, _SILENCE_S = 5.0, 60.0  # the server repeats itself every second
_DATA = "data: "
_FAILED, _NO_KEY, _UNREACHABLE, _INTERRUPTED = 1, 2, 3, 130


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What to ask of which server."""

    url: str
    model: str
    change: bool
    fields: dict[str, object]
    key: str | None = field(default=None, repr=False)

    @property
    def path(self) -> str:
        """The endpoint's address."""
        return f"{self.url.rstrip('/')}/{'change_model' if self.change else 'load_model'}"

    @property
    def body(self) -> dict[str, object]:
        """The request's JSON."""
        name = {"new_model_name" if self.change else "model_name": self.model}
        return name | self.fields


class Display(Protocol):
    """Shows the events of a load."""

    def show(self, event: dict[str, Any]) -> None:
        """One event: a step, the answer, or ``{"error": …}``."""
        ...


def load_model(request: LoadRequest, *, as_json: bool) -> int:
    """Load, and show it.

    Returns the exit status: 0, 1 if it failed, 2 for a key that is none, 3 without a server, 130 for Ctrl-C.
    """
    done = False
    if request.key is not None and not (request.key.isascii() and request.key.isprintable()):
        print("This is no API key: it has characters that no key has.", file=sys.stderr)  # noqa: T201
        return _NO_KEY
    try:
        with _display(as_json=as_json) as display:
            for event in _events(request):
                display.show(event)
                done = "status" in event and "error" not in event
    except httpx.TransportError:
        print(f"No inferapi server answers on {request.url}, or it went away.", file=sys.stderr)  # noqa: T201
        return _UNREACHABLE
    except KeyboardInterrupt:
        print("Left. The load goes on; POST /unload_model cancels it.", file=sys.stderr)  # noqa: T201
        return _INTERRUPTED
    return 0 if done else _FAILED


def _events(request: LoadRequest) -> Iterator[dict[str, Any]]:
    timeout = httpx.Timeout(_CONNECT_S, read=_SILENCE_S)
    headers = {"Accept": "text/event-stream"} | ({"Authorization": f"Bearer {request.key}"} if request.key else {})
    is_here = httpx.URL(request.url).host in {"127.0.0.1", "localhost", "::1"}  # no proxy knows the way
    with (
        httpx.Client(timeout=timeout, trust_env=not is_here) as client,
        client.stream("POST", request.path, json=request.body, headers=headers) as response,
    ):
        if not response.is_success or not response.headers.get("content-type", "").startswith("text/event-stream"):
            response.read()
            yield {"error": _problem(response)}
            return
        whole = False
        for line in response.iter_lines():
            if line.startswith(_DATA) and line != f"{_DATA}[DONE]":
                event = json.loads(line.removeprefix(_DATA))
                whole = "stage" not in event
                yield event
        if not whole:
            yield {"error": {"detail": "The connection was cut before the load was done; it may go on."}}


def _problem(response: httpx.Response) -> dict[str, Any]:
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if isinstance(problem, dict) and "detail" in problem:
        return problem
    detail = f"{response.url} answers {response.status_code} {response.reason_phrase}: no inferapi server?"
    return {"status": response.status_code, "detail": detail}


def _display(*, as_json: bool) -> AbstractContextManager[Display]:
    if as_json:
        return nullcontext(_Lines())
    console = Console(stderr=True)
    return _Bar(console) if console.is_terminal else nullcontext(_Plain())


class _Lines:
    """Every event as JSON."""

    def show(self, event: dict[str, Any]) -> None:
        print(json.dumps(event), flush=True)  # noqa: T201


class _Plain:
    """A line a stage, for logs and pipes."""

    _stage: str | None = None

    def show(self, event: dict[str, Any]) -> None:
        if "stage" in event:
            if event["stage"] != self._stage:
                self._stage = event["stage"]
                print(f"{event['stage']} ({event['elapsed_s']:.1f} s)", file=sys.stderr, flush=True)  # noqa: T201
        else:
            _tell(event)


class _Bar(AbstractContextManager["_Bar"]):
    """A bar for the bytes of each stage, and the seconds of all of them."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description:<12}"), BarColumn(), DownloadColumn())
        self._progress = Progress(*columns, TextColumn("{task.fields[time]}"), console=console)
        self._task: TaskID = self._progress.add_task("asking", total=None, time="")
        self._stage: str | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, event: dict[str, Any]) -> None:
        if "stage" not in event:
            self._progress.update(self._task, visible=False)
            self._progress.stop()
            _tell(event)
            return
        if event["stage"] != self._stage:
            self._stage = event["stage"]
            self._progress.reset(self._task, total=None)
        expected = f" of about {event['expected_s']:.0f} s" if event["expected_s"] else ""
        self._progress.update(
            self._task,
            description=event["stage"],
            completed=event["done_bytes"],
            total=event["total_bytes"] or None,
            time=f"{event['elapsed_s']:.1f} s{expected}",
        )


def _tell(event: dict[str, Any]) -> None:
    """The last word: what happened on stdout, what went wrong on stderr."""
    if "error" in event:
        print(event["error"]["detail"], file=sys.stderr)  # noqa: T201
    elif "status" in event:
        print(event["status"])  # noqa: T201

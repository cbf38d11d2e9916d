"""Log lines: one JSON object each for machines, or text for people. Never a prompt, an answer or a key."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that the current task serves."""
trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)
"""The id of the trace that it belongs to."""

_INDENT = 4 * " "
_ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

Origin = tuple[str | None, str | None]
"""A request's id and its trace's, on their way to another process."""


def origin() -> Origin:
    """Whose work the current task does."""
    return request_id.get(), trace_id.get()


@contextmanager
def on_behalf_of(whose: Origin) -> Iterator[None]:
    """Lines that are written within it are that request's."""
    request, trace = request_id.set(whose[0]), trace_id.set(whose[1])
    try:
        yield
    finally:
        request_id.reset(request)
        trace_id.reset(trace)


class JsonFormatter(logging.Formatter):
    """One object a line; whatever a client wrote stays inside its string.

    What a record has in ``fields`` comes as members of their own.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Encode a record."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if current := request_id.get():
            line["request_id"] = current
        if current := trace_id.get():
            line["trace_id"] = current
        fields: dict[str, object] = getattr(record, "fields", {})
        line |= {name: field for name, field in fields.items() if name not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextFormatter(logging.Formatter):
    """A line for a terminal, control characters made visible. Those of an exception are indented, and no others are."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        """Format one line, and keep it one line."""
        return _visible(super().formatMessage(record))

    def format(self, record: logging.LogRecord) -> str:
        """Format one line, and what goes with it."""
        if record.exc_info:
            record.exc_text = None  # where logging keeps it for other formatters: theirs may be as it came
        return super().format(record)

    def formatException(self, ei: _ExceptionInfo) -> str:  # noqa: N802 - logging's own name
        """Format a traceback. What an exception says may be anybody's words: none begin a line."""
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 - logging's own name
        """Format where a record was made."""
        return _indented(super().formatStack(stack_info))


def _visible(line: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in line)


def _indented(text: str) -> str:
    return "\n".join(_INDENT + _visible(line) for line in text.split("\n"))


def configure_logging(level: str, *, as_text: bool) -> None:
    """Send everything to stdout, the server's own lines included."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # At these levels they tell of single requests, and httpx of whole addresses, signed ones included.
    for name in ("httpx", "httpcore", "httpx2", "httpcore2", "huggingface_hub", "asyncio", "urllib3"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))

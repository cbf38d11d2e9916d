"""One request over HTTP, and what became of it: every request has exactly one fate."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import httpx

FIRST_ERROR, FIRST_SERVER_ERROR = 400, 500


class Kind(StrEnum):
    """How a request can end."""

    ANSWERED = "answered"
    REFUSED = "refused"
    LEFT = "left"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Ask:
    """A request.

    Attributes:
        body: sent as JSON; ``None`` sends none.
        expects: codes of refusals that are right here, such as ``queue_full``.
        answer_is_right: whether an answer with status 2xx is right here.
        leaves_after_s: the client closes the connection after so long, if no answer came before.
    """

    path: str
    body: Mapping[str, object] | None = None
    method: str = "POST"
    expects: frozenset[str] = frozenset()
    answer_is_right: bool = True
    leaves_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a request.

    Attributes:
        label: for people: ``answered``, ``left``, ``503 queue_full``, ``model_crashed in a stream`` or
            ``lost: ReadError``.
        code: of a refusal; else empty.
        is_right: whether it is one that the request expected.
        status: of the response; 0 where none came.
        says_when: whether a refusal told in ``Retry-After`` when to come again.
        took_s: from sending to the end.
        content: the JSON of an answer that came whole.
    """

    kind: Kind
    label: str
    is_right: bool
    code: str = ""
    status: int = 0
    says_when: bool = False
    took_s: float = 0.0
    content: Mapping[str, object] = field(default_factory=dict)


async def send(client: httpx.AsyncClient, ask: Ask) -> Fate:
    """Send a request and follow it to its end. Raises nothing but what cancels it."""
    started_s = time.perf_counter()
    try:
        async with asyncio.timeout(ask.leaves_after_s):
            return await _follow(client, ask, started_s)
    except TimeoutError:
        return Fate(Kind.LEFT, Kind.LEFT, is_right=True, took_s=time.perf_counter() - started_s)
    except (httpx.HTTPError, ValueError) as error:  # ValueError: it is called JSON, and is none
        return _lost(type(error).__name__, started_s)


async def _follow(client: httpx.AsyncClient, ask: Ask, started_s: float) -> Fate:
    async with client.stream(ask.method, ask.path, json=ask.body) as response:
        content: Mapping[str, object] = {}
        if response.is_success and response.headers.get("content-type", "").startswith("text/event-stream"):
            code = await _read_events(response)
            if code is None:
                return _lost("a stream without an end", started_s)
            label = f"{code} in a stream"
        else:
            await response.aread()
            content = response.json() if response.is_success and response.content else {}
            code = "" if response.is_success else _code(_parsed(response))
            label = f"{response.status_code} {code}"
    took_s = time.perf_counter() - started_s
    if not code:
        is_right = ask.answer_is_right
        return Fate(Kind.ANSWERED, Kind.ANSWERED, is_right, "", response.status_code, took_s=took_s, content=content)
    says_when = _is_whole_second(response.headers.get("retry-after", ""))
    return Fate(Kind.REFUSED, label, code in ask.expects, code, response.status_code, says_when, took_s)


async def _read_events(response: httpx.Response) -> str | None:
    """The code of the error that ends the stream; empty if it ends well, ``None`` if it has no end."""
    has_end = False
    async for line in response.aiter_lines():
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:"):
            continue
        if data == "[DONE]":
            has_end = True
        elif (event := json.loads(data)).get("error") is not None:
            return _code(event)
    return "" if has_end else None


def _lost(why: str, started_s: float) -> Fate:
    return Fate(Kind.LOST, f"{Kind.LOST}: {why}", is_right=False, took_s=time.perf_counter() - started_s)


def _parsed(response: httpx.Response) -> object:
    try:
        return response.json()
    except ValueError:
        return None


def _code(parsed: object) -> str:
    """The code of an error in either surface's shape; an error without one is no error of this server's."""
    if not isinstance(parsed, dict):
        return "no code"
    inner = parsed.get("error", parsed)
    return str(inner.get("code") or inner.get("type") or "no code") if isinstance(inner, dict) else "no code"


def _is_whole_second(text: str) -> bool:
    return text.isdecimal() and int(text) >= 1


class Tally:
    """The fates of many requests, counted.

    Attributes:
        sent: requests that were sent, whether or not they have ended.
        labels: how often each fate came.
        wrong: the same for answers and refusals that their requests did not expect, by path; what was lost is apart.
        server_errors: those of ``wrong`` whose status is 5xx, or that came in a stream.
        untold: refusals with 503 or 429 that did not say when to come again, by label.
        slowest_s: seconds of the slowest fate of each label.
    """

    def __init__(self) -> None:
        self.sent = 0
        self.labels: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.server_errors: Counter[str] = Counter()
        self.untold: Counter[str] = Counter()
        self.slowest_s: dict[str, float] = {}
        self._kinds: Counter[Kind] = Counter()

    async def ask(self, client: httpx.AsyncClient, ask: Ask) -> Fate:
        """Send a request and count what becomes of it; one that is cancelled has no fate, and so is lost."""
        self.sent += 1
        fate = await send(client, ask)
        self._count(ask, fate)
        return fate

    def leave(self) -> None:
        """Count a request that was cancelled because its client was to leave."""
        self._kinds[Kind.LEFT] += 1
        self.labels[Kind.LEFT] += 1

    def _count(self, ask: Ask, fate: Fate) -> None:
        self._kinds[fate.kind] += 1
        self.labels[fate.label] += 1
        self.slowest_s[fate.label] = max(self.slowest_s.get(fate.label, 0.0), fate.took_s)
        if not fate.is_right and fate.kind is not Kind.LOST:
            self.wrong[f"{ask.path} {fate.label}"] += 1
            if fate.status >= FIRST_SERVER_ERROR or (fate.code and fate.status < FIRST_ERROR):  # or in a stream
                self.server_errors[f"{ask.path} {fate.label}"] += 1
        if fate.status in {429, 503} and not fate.says_when:
            self.untold[fate.label] += 1

    @property
    def answered(self) -> int:
        """Whole answers."""
        return self._kinds[Kind.ANSWERED]

    @property
    def refused(self) -> int:
        """Answers that say no, as a status or in a stream."""
        return self._kinds[Kind.REFUSED]

    @property
    def left(self) -> int:
        """Requests whose client left first."""
        return self._kinds[Kind.LEFT]

    @property
    def lost(self) -> int:
        """Requests that got no whole word: broken connections, streams without an end, and those without any fate."""
        return self.sent - self.answered - self.refused - self.left

    @property
    def refusals(self) -> dict[str, int]:
        """How often each refusal came, the most frequent first."""
        plain = (Kind.ANSWERED, Kind.LEFT)
        return {
            label: count
            for label, count in self.labels.most_common()
            if label not in plain and not label.startswith(Kind.LOST)
        }

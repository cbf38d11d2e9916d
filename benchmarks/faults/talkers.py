"""Clients of one habit each: texts to continue, and conversations whose every acknowledged turn they remember."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import httpx

from .asking import Ask, Fate, Kind

SHORT_TOKENS = 16


def infer(new_tokens: int, *, stream: bool = False, text: str = "Once upon a time") -> dict[str, object]:
    """The body of a greedy continuation of exactly so many tokens."""
    body: dict[str, object] = {"text": text, "max_new_tokens": new_tokens, "temperature": 0, "ignore_eos": True}
    return body | {"stream": True} if stream else body


class Continuer:
    """Asks for continuations, streamed and whole in turn."""

    def __init__(self, new_tokens: int = SHORT_TOKENS, expects: Iterable[str] = ()) -> None:
        self._new_tokens = new_tokens
        self._expects = frozenset(expects)
        self._number = 0

    def next(self) -> Ask:
        """The next request."""
        self._number += 1
        return Ask("/infer", infer(self._new_tokens, stream=self._number % 2 == 0), expects=self._expects)

    def hear(self, fate: Fate) -> None:
        """Nothing to remember."""


class Chatter:
    """Talks in a session of its own; no two of its turns have the same text.

    Attributes:
        session_id: of its session.
        acknowledged: texts of the turns that were answered whole.
    """

    def __init__(self, session_id: str, new_tokens: int = SHORT_TOKENS, expects: Iterable[str] = ()) -> None:
        self.session_id = session_id
        self.acknowledged: list[str] = []
        self._new_tokens = new_tokens
        self._expects = frozenset(expects)
        self._number = 0

    def next(self) -> Ask:
        """The next turn; one that was refused is not sent again."""
        self._number += 1
        body = infer(self._new_tokens, stream=self._number % 2 == 0, text=self._text)
        return Ask("/chat", body | {"session_id": self.session_id}, expects=self._expects)

    def hear(self, fate: Fate) -> None:
        """Remember what the server says that it has."""
        if fate.kind is Kind.ANSWERED:
            self.acknowledged.append(self._text)

    @property
    def _text(self) -> str:
        return f"Turn {self._number} of {self.session_id}."


async def missing_turns(http: httpx.AsyncClient, chatters: Iterable[Chatter]) -> Counter[str]:
    """What is wrong with the stored histories: turns that are ``missing``, ``doubled`` or ``out of order``.

    A turn that was refused may be there all the same, if the connection to the store broke after it had written: such
    ones are ``stored though refused``.
    """
    wrong: Counter[str] = Counter()
    for chatter in chatters:
        answer = await http.get(f"/sessions/{chatter.session_id}")
        history = answer.json()["full_history"] if answer.status_code == httpx.codes.OK else []
        stored = [message["content"] for message in history if message["role"] == "user"]
        told = [text for text in stored if text in chatter.acknowledged]
        wrong["missing"] += len(set(chatter.acknowledged) - set(stored))
        wrong["doubled"] += len(stored) - len(set(stored))
        wrong["out of order"] += list(dict.fromkeys(told)) != [t for t in chatter.acknowledged if t in stored]
        wrong["stored though refused"] += len(stored) - len(told)
    return wrong

"""A client as there are many: it continues texts, chats, uses OpenAI's routes, makes mistakes, and leaves early."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

from .asking import Ask, Fate
from .talkers import infer

MOST_TURNS = 8
"""A session is deleted after so many turns: what is stored stays bounded, and memory that grows has no excuse."""

_BUSY = frozenset({"queue_full"})
_WORDS = ("sea", "dragon", "bread", "winter", "engine", "letter", "garden", "music", "stone", "market")


class Mixed:
    """Draws its requests by weight, from a seed of its own.

    Attributes:
        kinds: how often it asked for what.
    """

    def __init__(self, seed: int, model: str) -> None:
        self.kinds: Counter[str] = Counter()
        self._draw = random.Random(seed)  # noqa: S311 - a load, no secret
        self._model = model
        self._session_id = f"soak-{seed}"
        self._turns = 0
        self._makers: dict[str, tuple[int, Callable[[], Ask]]] = {
            "continuation": (22, lambda: self._infer(stream=False)),
            "continuation, streamed": (22, lambda: self._infer(stream=True)),
            "turn of a chat": (20, self._turn),
            "chat completion": (10, self._completion),
            "two choices": (4, self._choices),
            "embedding": (4, self._embedding),
            "long prompt": (3, self._long_prompt),
            "left before its end": (5, self._left),
            "mistake": (5, self._mistake),
            "look at the server": (5, self._look),
        }

    def next(self) -> Ask:
        """The next request."""
        if self._turns >= MOST_TURNS:
            self._turns = 0
            self.kinds["session deleted"] += 1
            # There is none if the queue had no room for any of the turns.
            return Ask(f"/sessions/{self._session_id}", None, "DELETE", frozenset({"session_not_found"}))
        names = list(self._makers)
        (name,) = self._draw.choices(names, [self._makers[one][0] for one in names])
        self.kinds[name] += 1
        return self._makers[name][1]()

    def hear(self, fate: Fate) -> None:
        """Nothing to remember: the tally counts."""

    def _text(self, words: int) -> str:
        return " ".join(self._draw.choices(_WORDS, k=words))

    def _infer(self, *, stream: bool) -> Ask:
        return Ask("/infer", infer(self._draw.randint(1, 48), stream=stream, text=self._text(20)), expects=_BUSY)

    def _turn(self) -> Ask:
        self._turns += 1
        body = infer(self._draw.randint(4, 32), stream=self._draw.random() < 0.5, text=self._text(12))
        return Ask("/chat", body | {"session_id": self._session_id}, expects=_BUSY)

    def _completion(self) -> Ask:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": self._text(15)}],
            "max_tokens": self._draw.randint(1, 32),
            "stream": self._draw.random() < 0.5,
        }
        return Ask("/v1/chat/completions", body, expects=_BUSY)

    def _choices(self) -> Ask:
        body = {"model": self._model, "prompt": self._text(10), "max_tokens": 12, "n": 2, "temperature": 1.0}
        return Ask("/v1/completions", body, expects=_BUSY)

    def _embedding(self) -> Ask:
        body = {"model": self._model, "input": [self._text(20), self._text(5)]}
        return Ask("/v1/embeddings", body, expects=_BUSY)

    def _long_prompt(self) -> Ask:
        return Ask("/infer", infer(4, text=self._text(self._draw.randint(500, 1500))), expects=_BUSY)

    def _left(self) -> Ask:
        body = infer(1000, stream=self._draw.random() < 0.5, text=self._text(10))
        return Ask("/infer", body, expects=_BUSY, leaves_after_s=self._draw.uniform(0.05, 1.5))

    def _mistake(self) -> Ask:
        return self._draw.choice(
            [
                Ask("/infer", {"text": "x", "temperature": -1}, "POST", frozenset({"invalid_request"}), False),
                Ask("/infer", infer(100, text=self._text(9000)), "POST", _BUSY | {"context_length_exceeded"}, False),
                Ask("/sessions/nobody", None, "GET", frozenset({"session_not_found"}), False),
                Ask("/load_model", {"model_name": "../etc"}, "POST", frozenset({"invalid_request"}), False),
                Ask("/v1/models/no-such-model", None, "GET", frozenset({"model_not_found"}), False),
            ]
        )

    def _look(self) -> Ask:
        path = self._draw.choice(["/health/live", "/health/ready", "/status", "/sessions", "/events", "/v1/models"])
        return Ask(path, None, "GET")

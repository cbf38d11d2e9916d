"""Prompts of a given length in tokens, no two with the same beginning, so that no prefix cache helps anyone."""

from __future__ import annotations

import itertools
import random

# Each is one token of SmolLM2's vocabulary, with the space before it.
WORDS = (  # noqa: SIM905 - shorter than a hundred quotes
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend father "
    "power hour game line end member law car city community name president team minute idea body information back "
    "parent face others level office door health person art war history party result change morning reason research "
    "girl guy moment air teacher force education"
).split()


class Prompts:
    """An endless supply; the same for every server that is asked with the same seed."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)  # noqa: S311 - no secret
        self._number = itertools.count()

    def take(self, tokens: int, count: int = 1) -> list[str]:
        """So many prompts of about so many tokens each."""
        return [self._one(tokens) for _ in range(count)]

    def _one(self, tokens: int) -> str:
        return " ".join(self._random.choice(WORDS) for _ in range(tokens))

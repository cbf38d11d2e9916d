"""Log-probabilities of tokens, as chat completions and responses tell them.

They are most of an answer's bytes where they are told: whole chats encode them as they come, streams of responses once
for all events that tell them again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from inferapi.domain.generation import ChosenToken, TokenChance

_encoder = msgspec.json.Encoder()


def encoded(tokens: Sequence[ChosenToken]) -> bytes:
    """The JSON of each token, and of the likeliest ones in its place; between commas, for ``listed``."""
    told = [_chance(token.chance) | {"top_logprobs": [_chance(each) for each in token.likeliest]} for token in tokens]
    return _encoder.encode(told)[1:-1]


def listed(pieces: Iterable[bytes]) -> msgspec.Raw:
    """A JSON list of what ``encoded`` gave."""
    return msgspec.Raw(b"[" + b",".join(piece for piece in pieces if piece) + b"]")


def _chance(chance: TokenChance) -> dict[str, Any]:
    return {"token": chance.text, "logprob": chance.logprob, "bytes": list(chance.data)}

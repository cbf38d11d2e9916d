"""Which tokens a request has seen, kept from step to step. Pure numpy: a sampler takes them from here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_SPARE_TOKENS = 256


class SeenTokens:
    """The token ids of one request, in an array that grows with it.

    A step costs its new tokens, however long the request is. An id of the answer may be in the array twice.
    """

    def __init__(self) -> None:
        self._ids: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._num_ids = 0
        self._num_tokens = 0

    def follow(self, tokens: Sequence[int]) -> npt.NDArray[np.int64]:
        """The ids in ``tokens``, which begin with those of the last call. Valid until the next call."""
        fresh = tokens[self._num_tokens :]
        self._num_tokens = len(tokens)
        end = self._num_ids + len(fresh)
        if end > len(self._ids):
            different = np.unique(np.concatenate([self._ids[: self._num_ids], np.asarray(fresh, dtype=np.int64)]))
            self._ids = np.concatenate([different, np.empty(len(different) + _SPARE_TOKENS, dtype=np.int64)])
            end = len(different)
        else:
            self._ids[self._num_ids : end] = fresh
        self._num_ids = end
        return self._ids[:end]


class CountedTokens:
    """How often each token is in one request's answer, in arrays that grow with it. A step costs its new tokens."""

    def __init__(self) -> None:
        self._place_of: dict[int, int] = {}
        self._ids: npt.NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._counts: npt.NDArray[np.float32] = np.empty(0, dtype=np.float32)
        self._num_tokens = 0

    def follow(self, tokens: Sequence[int], start: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """The ids in ``tokens[start:]``, each once, and how often. Valid until the next call.

        The tokens begin with those of the last call, and the start is the same.
        """
        for token in tokens[max(start, self._num_tokens) :]:
            place = self._place_of.setdefault(token, len(self._place_of))
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, np.zeros(_SPARE_TOKENS, dtype=np.int64)])
                self._counts = np.concatenate([self._counts, np.zeros(_SPARE_TOKENS, dtype=np.float32)])
            self._ids[place] = token
            self._counts[place] += 1
        self._num_tokens = len(tokens)
        different = len(self._place_of)
        return self._ids[:different], self._counts[:different]

"""Texts to vectors: the hidden states behind a model's last layer, pooled and scaled to length 1.

The pass is transformers' own, by the attention that the model was loaded with. A model that runs in batches has another
one registered, which knows nothing but the paged cache; the two change places for as long as a pass takes. That is safe
between the steps of the loop, in its thread: nobody else computes then, and what repeats steps (tapes, graphs) asks no
configuration. Nothing is kept of a pass, so it touches neither the cache nor its blocks.

Shapes: ``T`` tokens of the text, ``H`` hidden size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from inferapi.domain.errors import EmbeddingsRefused
from inferapi.engine.loop import is_out_of_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODULES_FILE, POOLING_FILE = "modules.json", "1_Pooling/config.json"
"""Where sentence-transformers says what a model that was made for embedding consists of, and how it pools."""

_MOST_CONFIG_BYTES = 65536
_TRIAL_TOKENS = (0, 1)
_NO_BODY = "its class has no part without an output layer"
_NO_POOLING = "its pooling is neither the mean nor the first or last token"
_NO_FILE = f"its folder lacks {POOLING_FILE}"
_MORE_LAYERS = "it has layers behind its pooling"
_OVERFLOW = "its numbers overflow for this text"


class Pooling(StrEnum):
    """What of the hidden states makes the vector; the values are sentence-transformers' names."""

    MEAN = "mean"
    LAST_TOKEN = "lasttoken"  # noqa: S105 - no password
    FIRST_TOKEN = "cls"  # noqa: S105 - no password


_KNOWN_MODULES = {"Transformer", "Pooling", "Normalize"}
_MODES_BY_FLAG = {  # of sentence-transformers before 5.4
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class NoPoolingError(Exception):
    """Why a model cannot be pooled as it wants to be."""


class Embedder:
    """One model's way from tokens to vectors; for the step loop's thread, between two steps.

    A model that makes none says why: ``refusal``. One that does says how many numbers each has: ``dimensions``.

    Args:
        model: as the runner has it, its output layer included.
        name: what it is called in errors.
        folder: its files.
        attention: transformers' name of the attention that it was loaded with.
    """

    def __init__(self, model: PreTrainedModel, *, name: str, folder: str, attention: str) -> None:
        self._model = model
        self._name = name
        self._attention = attention
        self._pooling = Pooling.MEAN
        self.refusal = ""
        self.dimensions: int | None = None
        try:
            self._pooling = folder_pooling(folder)
            self.dimensions = len(self.embed(_TRIAL_TOKENS))
        except NoPoolingError as error:
            self.refusal = str(error)
        except EmbeddingsRefused as error:
            self.refusal = str(error.facts["reason"])
        except Exception as error:
            if is_out_of_memory(error):
                raise
            self.refusal = f"its class does not tell what is behind its last layer ({type(error).__name__})"

    @torch.inference_mode()
    def embed(self, tokens: Sequence[int]) -> list[float]:
        """The vector ``[H]`` of one text, in one pass: float32 numbers whose squares add up to 1.

        Raises:
            EmbeddingsRefused: the model makes none, or its numbers overflow for this text.
            RuntimeError, MemoryError: as a step; ``is_out_of_memory`` knows which of them want memory.
        """
        if self.refusal:
            raise self._refused(self.refusal)
        body = self._model.base_model
        if body is self._model:
            raise self._refused(_NO_BODY)
        input_ids = torch.tensor([list(tokens)], device=self._model.device)
        with self._own_attention():
            output = body(input_ids=input_ids, use_cache=False)
        vector = F.normalize(self._pooled(output.last_hidden_state[0]), dim=0)
        if not bool(vector.isfinite().all()):
            raise self._refused(_OVERFLOW)
        numbers: list[float] = vector.tolist()
        return numbers

    def _pooled(self, hidden: torch.Tensor) -> torch.Tensor:
        """``[T, H]`` of one text, of which nothing is padding, to ``[H]``."""
        if self._pooling is Pooling.MEAN:
            return hidden.float().mean(0)
        return hidden[-1 if self._pooling is Pooling.LAST_TOKEN else 0].float()

    @contextmanager
    def _own_attention(self) -> Iterator[None]:
        registered = self._model.config._attn_implementation  # noqa: SLF001 - there is no public name for it
        if registered == self._attention:
            yield
            return
        try:
            self._model.set_attn_implementation(self._attention)
            yield
        finally:
            self._model.set_attn_implementation(registered)

    def _refused(self, reason: str) -> EmbeddingsRefused:
        return EmbeddingsRefused(model=self._name, reason=reason)


def folder_pooling(folder: str) -> Pooling:
    """What the folder says; the mean, where it says nothing.

    Raises:
        NoPoolingError: it says something that is not done here, or cannot be read.
    """
    try:
        modules, pooling = _kinds_of_modules(Path(folder, MODULES_FILE)), _said(Path(folder, POOLING_FILE))
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as error:
        raise NoPoolingError(_NO_POOLING) from error
    if not modules <= _KNOWN_MODULES:
        raise NoPoolingError(_MORE_LAYERS)
    if pooling is None and "Pooling" in modules:
        raise NoPoolingError(_NO_FILE)
    return pooling or Pooling.MEAN


def _kinds_of_modules(file: Path) -> set[str]:
    """The classes that sentence-transformers would build, without the packages that they are in."""
    return {str(module["type"]).rpartition(".")[2] for module in _json(file) or ()}


def _said(file: Path) -> Pooling | None:
    config = _json(file)
    if config is None:
        return None
    said = config.get("pooling_mode") or [mode for flag, mode in _MODES_BY_FLAG.items() if config.get(flag)]
    (mode,) = [said] if isinstance(said, str) else said or [Pooling.MEAN]  # several would be put side by side
    return Pooling(mode)


def _json(file: Path) -> Any:
    """What a file holds; ``None`` where there is none."""
    if not file.is_file():
        return None
    with file.open("rb") as opened:
        return json.loads(opened.read(_MOST_CONFIG_BYTES))

"""One request at a time, for models that keep their state in a way the paged cache cannot hold.

State-space layers, convolutions, masks of the model's own, frequencies that depend on the length of the
longest request: transformers' own ``generate`` handles them all. It runs in a thread of its own, and at every
token it hands the logits over and waits for the token that the engine's sampler chose: the same steps,
parameters and cancellation as in a batch, by public interfaces only.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from inferapi.engine.request import Request
from inferapi.engine.scheduler import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class _StoppedError(Exception):
    """Unwinds ``generate`` when the engine wants no more tokens."""


class _Generation(LogitsProcessor):
    """One running ``generate``: a thread that turns a chosen token into the next logits."""

    def __init__(self, model: PreTrainedModel, request: Request) -> None:
        self._model = model
        self._request = request
        self._threads = torch.get_num_threads()
        self._chosen: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._logits: queue.SimpleQueue[torch.Tensor | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="generate", daemon=True)
        self._thread.start()

    def advance(self, token: int | None) -> torch.Tensor:
        """Feed the token chosen last (``None`` at the start) and return the next logits ``[1, V]``."""
        if token is not None:
            self._chosen.put(token)
        logits = self._logits.get()
        if isinstance(logits, BaseException):
            raise logits
        return logits

    def stop(self) -> None:
        """End it; returns when the thread has gone and its cache with it."""
        self._chosen.put(None)
        self._thread.join()

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Called by ``generate`` in its thread: hand over the logits, force the token that was chosen."""
        self._logits.put(scores.clone())
        token = self._chosen.get()
        if token is None:
            raise _StoppedError
        return torch.full_like(scores, float("-inf")).index_fill_(1, torch.tensor([token], device=scores.device), 0)

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # the setting is the calling thread's own
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self._request.sampling.max_new_tokens + 1,
            eos_token_id=None,
            pad_token_id=0,
            use_cache=True,
        )
        tokens = torch.tensor([self._request.tokens], device=self._model.device)
        try:
            with torch.inference_mode():
                generate: Any = self._model.generate
                generate(
                    tokens,
                    attention_mask=torch.ones_like(tokens),
                    generation_config=config,
                    logits_processor=LogitsProcessorList([self]),
                )
        except _StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again in the engine's thread
            self._logits.put(error)


class SequentialRunner:
    """A ``Runner`` of one slot."""

    def __init__(self, model: PreTrainedModel) -> None:
        # generate() fills what a request leaves open from here: the engine's sampler decides alone.
        model.generation_config = GenerationConfig()
        self._model = model
        self._generations: dict[int, _Generation] = {}

    def run(self, plan: Plan) -> torch.Tensor:
        """See ``Runner``; the plan holds one segment: a whole prompt, or one token."""
        (segment,) = plan.segments
        request = segment.request
        generation = self._generations.get(request.request_id)
        if generation is None:
            generation = self._generations[request.request_id] = _Generation(self._model, request)
            return generation.advance(None)
        return generation.advance(request.tokens[-1])

    def release(self, request: Request) -> None:
        """End the request's generation, if it ever began."""
        generation = self._generations.pop(request.request_id, None)
        if generation is not None:
            generation.stop()

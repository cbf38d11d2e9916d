"""The step loop: schedule, run, sample, publish. The only writer of slots and KV blocks."""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from inferapi.domain.errors import InferapiError, InvalidRequest, OutOfMemory, QueueFull
from inferapi.domain.generation import Chunk, Finish
from inferapi.domain.model import EngineLoad
from inferapi.domain.telemetry import StepTally
from inferapi.engine.answer import Answer, BytesOf
from inferapi.engine.chances import Chances
from inferapi.engine.detokenizer import Decode
from inferapi.engine.model_runner import Runner
from inferapi.engine.request import Request
from inferapi.engine.sampler import Sampled, Sampler
from inferapi.engine.scheduler import Plan, Scheduler, Segment
from inferapi.engine.tally import Tally

log = logging.getLogger(__name__)

_NO_PRIMITIVE = "could not create a primitive"  # oneDNN
_SIGNS_OF_NO_MEMORY = (
    "can't allocate memory",  # torch's allocator for the CPU
    "Cannot allocate memory",  # the operating system's words, as torch, safetensors and Rust repeat them
    "std::bad_alloc",  # C++, where nobody translated it
    "could not create a memory object",  # oneDNN
    _NO_PRIMITIVE,
    "can't start new thread",  # Python: no room for its stack
)


@dataclass(frozen=True, slots=True)
class Output:
    """What a step has to say to one request: a piece of its answer, or why it failed."""

    request_id: int
    item: Chunk | InferapiError


class EngineLoop:
    """Steps of one model. Not thread-safe: one thread submits, cancels and steps.

    Args:
        decode: ids to text, special tokens left out.
        eos_token_ids: tokens that end an answer.
        bytes_of: an id to the bytes of its token; by default those of its text.
        vocabulary_tokens: how many tokens the model knows; ``None``: not known.
        now_s: the system's monotonic clock.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        *,
        decode: Decode,
        eos_token_ids: Collection[int],
        bytes_of: BytesOf | None = None,
        vocabulary_tokens: int | None = None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scheduler = scheduler
        self._runner = runner
        self._sampler = Sampler(eos_token_ids)
        self._decode = decode
        self._eos_token_ids = frozenset(eos_token_ids)
        self._bytes_of = bytes_of or (lambda token: decode([token]).encode())
        self._vocabulary_tokens = vocabulary_tokens
        self._now_s = now_s
        self._answers: dict[int, Answer] = {}
        self._tally = Tally()
        self._is_spoiled = False

    @property
    def is_idle(self) -> bool:
        """No request is waiting or running."""
        return self._scheduler.is_idle

    @property
    def is_spoiled(self) -> bool:
        """Memory ran out where the thread cannot get over it, however much there is later: it must be replaced.

        oneDNN compiles a kernel for each new shape. Once that found no memory, its compiler (Xbyak) keeps the
        error for the thread, and no kernel is made any more.
        """
        return self._is_spoiled

    @property
    def load(self) -> EngineLoad:
        """How busy it is."""
        scheduler = self._scheduler
        return EngineLoad(len(scheduler.running), scheduler.waiting, scheduler.kv_cache_usage_ratio)

    def take_tally(self) -> StepTally | None:
        """What was computed since the last time, whoever still wants it; ``None`` for nothing."""
        return self._tally.take()

    def submit(self, request: Request) -> list[Output]:
        """Queue a request. What is returned is the refusal of another one, if one had to leave the full queue for it.

        Raises:
            QueueFull: too many wait already.
            InvalidRequest: it names a token that the model does not know.
        """
        self._require_known_tokens(request)
        displaced = self._scheduler.submit(request)
        self._answers[request.request_id] = Answer(request, self._decode, self._bytes_of, self._eos_token_ids)
        if displaced is None:
            return []
        self._release(displaced)
        return [Output(displaced.request_id, QueueFull(waiting=self._scheduler.waiting))]

    def cancel(self, request_id: int) -> None:
        """Drop a request wherever it is; unknown ids are fine, they may have finished meanwhile."""
        if request_id in self._answers:
            self._drop(self._answers[request_id].request)

    def step(self) -> list[Output]:
        """One forward pass for everybody who runs; nothing when idle."""
        plan = self._scheduler.plan(self._now_s())
        if plan is None:
            return []
        sampled: Sampled | None
        try:
            logits = self._runner.run(plan)
            sampling = [segment.request for segment in plan.segments if segment.samples]
            sampled = self._sampler.sample(logits, sampling) if sampling else Sampled([])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._is_spoiled |= _NO_PRIMITIVE in str(error)
            log.warning("a step found no memory: %s", str(error).partition("\n")[0])
            sampled = None  # the error holds the tensors of the pass: it must be gone before the cache is emptied
        return self._fail(plan) if sampled is None else self._advance(plan.segments, sampled)

    def _require_known_tokens(self, request: Request) -> None:
        known = self._vocabulary_tokens
        for token, _ in request.sampling.logit_bias:
            if known is not None and not 0 <= token < known:
                raise InvalidRequest(problem=f"logit_bias: there is no token {token}; the last one is {known - 1}.")

    def _advance(self, segments: Sequence[Segment], sampled: Sampled) -> list[Output]:
        outputs = []
        row = 0
        now_s = self._now_s()  # the same for all tokens of a step
        for segment in segments:
            request = segment.request
            samples = segment.samples
            self._scheduler.advance(segment)
            if samples:
                item = self._accept(request, sampled.tokens[row], sampled.chances.get(row), now_s)
                row += 1
                if isinstance(item, InferapiError) or item.text or item.finish:
                    outputs.append(Output(request.request_id, item))
        return outputs

    def _accept(self, request: Request, token: int, chances: Chances | None, now_s: float) -> Chunk | InferapiError:
        """Append a sampled token, and end the request if it was its last, or one that its constraint does not bear."""
        answer = self._answers[request.request_id]
        try:
            text, reason = answer.add(token, chances)
        except InvalidRequest as error:
            self._drop(request)
            return error
        if request.first_token_s is None:
            request.first_token_s = now_s
        self._tally.token(request, now_s)
        if reason is None:
            told = answer.tell() if text else ()
            return Chunk(text, tokens=told, completion_tokens=request.num_completion_tokens)
        request.finish_reason = reason
        self._drop(request)
        finish = Finish(reason, request.usage(), request.timings(now_s))
        return Chunk(text, finish, answer.tell(), request.num_completion_tokens)

    def _fail(self, plan: Plan) -> list[Output]:
        """Give up the requests whose pass found no memory: the newest prompts, or else all of it."""
        victims = [segment.request for segment in plan.prefills or plan.decodes]
        self._scheduler.give_up(victims)
        for request in victims:
            self._release(request)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return [Output(request.request_id, OutOfMemory()) for request in victims]

    def _drop(self, request: Request) -> None:
        self._scheduler.remove(request)
        self._release(request)

    def _release(self, request: Request) -> None:
        del self._answers[request.request_id]
        self._runner.release(request)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it was raised from, says that no memory was to be had: host's or GPU's."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if any(sign in str(error) for sign in _SIGNS_OF_NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__ or error
    return False

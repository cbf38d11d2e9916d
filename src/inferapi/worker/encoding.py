"""The thread that renders and tokenizes prompts, owners in turns, so that a long one delays no step."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from inferapi.domain.errors import GenerationTimeout, InferapiError, InvalidRequest, OutOfMemory
from inferapi.engine.constraints import Constrainer
from inferapi.engine.loop import Output, is_out_of_memory
from inferapi.engine.matching import AnswerMatcher
from inferapi.engine.prompt_encoder import PromptEncoder
from inferapi.engine.request import Request
from inferapi.worker.interruption import Interrupted, Interruptible
from inferapi.worker.message_thread import MessageThread
from inferapi.worker.messages import Generate

log = logging.getLogger(__name__)

_Encoded = tuple[list[int], int, AnswerMatcher | None]  # token ids, turns left out, and the constraint of the answer


class PromptThread(MessageThread[Generate, Request | Output]):
    """Prompts in, requests for the engine out; each ends at its deadline or its cancel, whatever its template does.

    The constraint of an answer is compiled here too.

    Args:
        deliver, on_end: as ``MessageThread`` has them.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        constrainer: Constrainer,
        *,
        deliver: Callable[[Request | Output], None],
        on_end: Callable[[], None],
    ) -> None:
        super().__init__("encoder", deliver=deliver, on_end=on_end)
        self._encoder = encoder
        self._constrainer = constrainer
        self._interruptible = Interruptible()

    def cancel(self, request_id: int) -> None:
        """Nobody waits for it any more; for the reader thread. Its result comes all the same, at once."""
        if request_id in self._pending:
            super().cancel(request_id)  # first, then interrupt: the encoder looks there once it can be interrupted
            self._interruptible.interrupt(request_id)

    def is_stuck(self) -> bool:
        """Look after what is overdue, about once a second; whether it can never be ended."""
        return self._interruptible.watch()

    def _encoded(self, message: Generate) -> Request | Output:
        request, encoder = message.request, self._encoder
        try:
            tokens, dropped_turns, matcher = self._encode(message)
            stop = (*request.sampling.stop, *encoder.stop_strings(request.prompt))
        except Interrupted:
            timeout_s = round(request.deadline_s - request.arrived_s, 3)
            return Output(message.request_id, GenerationTimeout(timeout_s=timeout_s))
        except InferapiError as error:
            return Output(message.request_id, error)
        except BaseException as error:  # one odd prompt must not end the thread of all; a panic in Rust is no Exception
            if is_out_of_memory(error):
                log.warning("no memory to encode a prompt: %s", error)
                return Output(message.request_id, OutOfMemory())
            log.exception("a prompt could not be encoded")
            problem = "The model's tokenizer cannot encode this prompt."
            return Output(message.request_id, InvalidRequest(problem=problem))
        return Request(
            request_id=message.request_id,
            tokens=tokens,
            num_prompt_tokens=len(tokens),
            sampling=replace(request.sampling, stop=stop) if stop else request.sampling,
            arrived_s=request.arrived_s,
            dropped_turns=dropped_turns,
            salt=request.salt,
            matcher=matcher,
        )

    def _encode(self, message: Generate) -> _Encoded:
        request = message.request

        def encode() -> _Encoded:
            if message.request_id in self._cancelled:
                raise Interrupted
            tokens, dropped_turns = self._encoder.encode(request.prompt, request.sampling)
            constraint = request.sampling.constraint
            matcher = None if constraint is None else self._constrainer.matcher(constraint)
            return tokens, dropped_turns, matcher

        return self._interruptible.run(message.request_id, encode, request.deadline_s)

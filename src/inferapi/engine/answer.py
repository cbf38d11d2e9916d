"""An answer as it grows: what its tokens say, how likely they were, and when it ends."""

from __future__ import annotations

from collections.abc import Callable, Collection

from inferapi.domain.generation import ChosenToken, FinishReason, TokenChance
from inferapi.engine.chances import Chances
from inferapi.engine.detokenizer import Decode, Detokenizer
from inferapi.engine.request import Request

BytesOf = Callable[[int], bytes]


class Answer:
    """One request's. The request's tokens, and how far it has come in its constraint, move on here and nowhere else.

    Args:
        decode: ids to text, special tokens left out.
        bytes_of: an id to the bytes of its token.
        eos_token_ids: tokens that end an answer. One that does is not part of it.
    """

    def __init__(self, request: Request, decode: Decode, bytes_of: BytesOf, eos_token_ids: Collection[int]) -> None:
        self.request = request
        self._detokenizer = Detokenizer(decode, request.tokens, request.sampling.stop)
        self._bytes_of = bytes_of
        self._eos_token_ids = eos_token_ids
        self._untold: list[ChosenToken] = []
        self._num_told = 0

    def add(self, token: int, chances: Chances | None) -> tuple[str, FinishReason | None]:
        """Append a sampled token: the text that is certain now, and why the answer ends if it does.

        Raises:
            InvalidRequest: the answer's constraint can be kept no longer.
        """
        request, detokenizer = self.request, self._detokenizer
        sampling, matcher = request.sampling, request.matcher
        # A constrained answer has an end, whatever else was asked for.
        ends = token in self._eos_token_ids and (matcher is not None or not sampling.ignore_eos)
        request.tokens.append(token)
        if matcher is not None:
            matcher.take(token, is_end=ends)
        if ends:
            return detokenizer.flush(), FinishReason.STOP
        if chances is not None:
            self._untold.append(self._chosen(token, chances))
        may_stop = request.num_completion_tokens >= sampling.min_new_tokens and (matcher is None or matcher.may_end)
        text = detokenizer.push(token, may_stop=may_stop)
        if detokenizer.stopped:
            return text, FinishReason.STOP
        if matcher is not None and matcher.is_complete:
            return text + detokenizer.flush(), FinishReason.STOP
        if request.num_completion_tokens >= sampling.max_new_tokens:
            text += detokenizer.flush()
            return text, FinishReason.STOP if detokenizer.stopped else FinishReason.LENGTH
        return text, None

    def tell(self) -> tuple[ChosenToken, ...]:
        """The tokens whose text is out by now, each of them once; none unless the request asked for them."""
        if not self._untold:
            return ()
        fresh = self._detokenizer.num_told_tokens - self._num_told
        told, self._untold = tuple(self._untold[:fresh]), self._untold[fresh:]
        self._num_told += fresh
        return told

    def _chosen(self, token: int, chances: Chances) -> ChosenToken:
        likeliest = tuple(self._chance(token_id, logprob) for token_id, logprob in chances.likeliest)
        return ChosenToken(self._chance(token, chances.logprob), likeliest)

    def _chance(self, token: int, logprob: float) -> TokenChance:
        data = self._bytes_of(token)
        return TokenChance(token, data.decode(errors="replace"), data, logprob)

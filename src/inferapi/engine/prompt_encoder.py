"""Prompts to token ids, such that what a client wrote is text and nothing else.

A tokenizer turns the characters ``<|im_end|>`` into the token that ends a turn, wherever they stand. So where a string
of a client holds such characters, it is cut inside them and encoded piece by piece; everything else takes the same path
as transformers' own ``apply_chat_template``, and gives the same ids. What a template is given is marked at the cuts
with digits that no client can guess; they come through all that templates do to strings, JSON's escapes included.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from inferapi.domain.chat import Message
from inferapi.domain.errors import ContextWindowExceeded, InvalidRequest
from inferapi.domain.generation import Prompt, SamplingParams, Tool
from inferapi.engine.template_facts import template_facts
from inferapi.engine.template_inputs import Put, manners, template_messages, template_tools

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKUP = ("<", "[")  # added tokens that are no words, named special or not: <think>, [TOOL_CALLS]

_MOST_EMBEDDED_TOKENS = 8192  # computed in one pass, for which others wait; OpenAI's models take as much
_CHARACTERS_PER_TOKEN = 6  # of English about 4.5

_MARK_DIGITS = 38  # 126 bits

PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ {'system': '', 'user': 'User: ', 'assistant': 'Assistant: '}[message['role']] }}"
    "{{ message['content'] }}{{ '\\n\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""For models without a chat template of their own: documented in the guide."""

PLAIN_TEMPLATE_STOP = ("\nUser:",)
"""A base model goes on to write the user's next question; its answer ends there."""


class PromptEncoder:
    """Renders and tokenizes for one model; ``facts`` tell what its template can do."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context_window_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._context_window_tokens = context_window_tokens
        self._template = None if tokenizer.chat_template else PLAIN_TEMPLATE
        control = {
            token.content: token_id
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token.special or token_id in tokenizer.all_special_ids or token.content.lstrip().startswith(_MARKUP)
        }
        longest_first = sorted(control, key=len, reverse=True)
        self._control = re.compile("|".join(re.escape(token) for token in longest_first) or r"(?!)")
        self._control_ids = frozenset(control.values())
        self._before, self._after = _added_around(tokenizer)
        self.facts = template_facts(tokenizer)

    def stop_strings(self, prompt: Prompt) -> tuple[str, ...]:
        """Stop strings that the rendering of this prompt calls for."""
        return PLAIN_TEMPLATE_STOP if self._template and prompt.text is None else ()

    def encode(self, prompt: Prompt, sampling: SamplingParams) -> tuple[list[int], int]:
        """Token ids, and how many of the oldest turns were left out to fit.

        Raises:
            ContextWindowExceeded: with ``max_new_tokens``, it does not fit the context window.
            InvalidRequest: the model's chat template refuses the messages or the tools, or there is nothing to encode.
        """
        self._require_tools(prompt)
        room = self._context_window_tokens - sampling.max_new_tokens
        turns = max(len(prompt.messages) - 2, 0) // 2 if prompt.drop_oldest_turns else 0
        fitting: tuple[list[int], int] | None = None
        # Newest first: a history can be many times what fits, and is long to encode. ``most`` turns are known to fit,
        # ``too_many`` not to; fewer turns are fewer tokens.
        most, too_many = -1, turns + 1
        kept = _likely_to_fit(prompt.messages, turns, room)
        while too_many - most > 1:
            tokens = _some(self._encode_once(prompt, turns - kept))
            if len(tokens) <= room:
                fitting, most = (tokens, turns - kept), kept
            else:
                too_many = kept
            kept = (most + too_many) // 2 if too_many <= turns else min(2 * kept + 1, turns)
        if fitting is None:
            raise ContextWindowExceeded(
                prompt_tokens=len(tokens),
                max_new_tokens=sampling.max_new_tokens,
                context_window_tokens=self._context_window_tokens,
            )
        return fitting

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a text that stands for itself: one to be embedded.

        Raises:
            ContextWindowExceeded: it is longer than the context window, or than a vector's pass may be.
            InvalidRequest: there is nothing to encode.
        """
        tokens = _some(self._encode_raw(text))
        most = min(self._context_window_tokens, _MOST_EMBEDDED_TOKENS)
        if len(tokens) > most:
            raise ContextWindowExceeded(prompt_tokens=len(tokens), max_new_tokens=0, context_window_tokens=most)
        return tokens

    def _require_tools(self, prompt: Prompt) -> None:
        """Refuse tools, and what follows from them, where they would come to nothing."""
        if prompt.tools and self.facts.knows_tools and self.facts.tool_format is None:
            raise InvalidRequest(problem="tools: how this model writes its calls is not known here.")
        has_tools = prompt.tools or any(message.role == "tool" or message.tool_calls for message in prompt.messages)
        if has_tools and not self.facts.knows_tools:
            raise InvalidRequest(problem="tools: this model's chat template knows none, and no messages of role tool.")

    def _encode_once(self, prompt: Prompt, dropped_turns: int) -> list[int]:
        if prompt.text is not None:
            return self._encode_raw(prompt.text)
        system, rest = prompt.messages[:1], prompt.messages[1:]
        return self._encode_messages([*system, *rest[2 * dropped_turns :]], prompt.tools)

    def _encode_raw(self, text: str) -> list[int]:
        if not self._control.search(text):
            tokens = list(self._tokenizer(text)["input_ids"])
            return self._checked(tokens, allowed=self._count_control([*self._before, *self._after]))
        return [*self._before, *self._encode_data(text), *self._after]

    def _encode_messages(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        mark = f"{secrets.randbelow(10**_MARK_DIGITS):0{_MARK_DIGITS}}"
        pieces = self._render(messages, tools, lambda text: mark.join(self._cut(text))).split(mark)
        tokens: list[int] = []
        for piece, encoded in zip(pieces, self._encode_each(pieces), strict=True):
            # A control token that is whole in a piece was written by the template.
            tokens += self._checked(encoded, allowed=len(self._control.findall(piece)))
        return tokens

    def _render(self, messages: Sequence[Message], tools: Sequence[Tool], put: Put) -> str:
        refusal: Exception | None = None
        try:
            given_tools = template_tools(tools, put)
            for manner in manners(messages):
                try:
                    return self._apply(template_messages(messages, manner, put), given_tools)
                except (TemplateError, TypeError) as error:  # it refuses them, or takes them for something else
                    refusal = error
        except RecursionError as error:
            raise InvalidRequest(problem="The messages or tools are nested too deeply.") from error
        raise InvalidRequest(problem="The model's chat template refuses these messages.") from refusal

    def _apply(self, messages: list[dict[str, Any]], tools: list[Any] | None) -> str:
        rendered = self._tokenizer.apply_chat_template(
            messages, tools=tools, chat_template=self._template, add_generation_prompt=True, tokenize=False
        )
        return str(rendered)

    def _encode_data(self, text: str) -> list[int]:
        """Encode what a client wrote: the characters of control tokens, never the tokens."""
        return self._checked([token for tokens in self._encode_each(self._cut(text)) for token in tokens], allowed=0)

    def _encode_each(self, pieces: Sequence[str]) -> Sequence[list[int]]:
        """Token ids of each piece, in one call: a client can have a text cut a hundred thousand times."""
        if len(pieces) == 1:
            return [list(self._tokenizer(pieces[0], add_special_tokens=False)["input_ids"]) if pieces[0] else []]
        some = [piece for piece in pieces if piece] or [""]
        encoded = iter(self._tokenizer(some, add_special_tokens=False)["input_ids"])
        return [list(next(encoded)) if piece else [] for piece in pieces]

    def _cut(self, text: str) -> list[str]:
        """What a client wrote in pieces, none of which holds a control token of more than one character."""
        pieces, start = [], 0
        while found := self._control.search(text, start):
            if found.end() - found.start() == 1:
                raise _reserved()
            pieces.append(text[start : found.start() + 1])
            start = found.start() + 1
        return [*pieces, text[start:]]

    def _checked(self, tokens: list[int], *, allowed: int) -> list[int]:
        """The tokens, unless more of them are control than may be: a normalizer can make them of other characters."""
        if self._count_control(tokens) > allowed:
            raise _reserved()
        return tokens

    def _count_control(self, tokens: Sequence[int]) -> int:
        return sum(token in self._control_ids for token in tokens)


def _added_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after any text, such as BOS."""
    bare, whole = (list(tokenizer("a", add_special_tokens=added)["input_ids"]) for added in (False, True))
    for start in range(len(whole) - len(bare) + 1 if bare else 0):
        end = start + len(bare)
        if whole[start:end] == bare:
            return whole[:start], whole[end:]
    return list(tokenizer("")["input_ids"]), []


def _some(tokens: list[int]) -> list[int]:
    if not tokens:
        raise InvalidRequest(problem="The prompt is empty for this model's tokenizer.")
    return tokens


def _reserved() -> InvalidRequest:
    return InvalidRequest(problem="The text holds characters that this model reserves for control.")


def _likely_to_fit(messages: Sequence[Message], turns: int, room: int) -> int:
    """How many of the newest turns to try first: rather too many, since one encoding more is all that it costs."""
    characters, kept = _CHARACTERS_PER_TOKEN * room, 0
    while kept < turns:
        end = len(messages) - 1 - 2 * kept
        characters -= len(messages[end - 2].content) + len(messages[end - 1].content)
        if characters < 0:
            break
        kept += 1
    return kept

"""Prompts to token ids, such that what a client wrote is text and nothing else.

A tokenizer turns the characters ``<|im_end|>`` into the token that ends a turn, wherever they stand. So text
of a client that holds such characters is cut inside them and encoded piece by piece; everything else takes the
same path as transformers' own ``apply_chat_template``, and gives the same ids.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from inferapi.domain.chat import Message
from inferapi.domain.errors import ContextWindowExceeded, InvalidRequest
from inferapi.domain.generation import Prompt, SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKUP = ("<", "[")  # added tokens that are no words, named special or not: <think>, [TOOL_CALLS]

_CHARACTERS_PER_TOKEN = 6  # of English about 4.5

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
    """Renders and tokenizes for one model."""

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
        self._around = list(tokenizer("")["input_ids"])  # what the tokenizer adds to any text, such as BOS

    def stop_strings(self, prompt: Prompt) -> tuple[str, ...]:
        """Stop strings that the rendering of this prompt calls for."""
        return PLAIN_TEMPLATE_STOP if self._template and prompt.text is None else ()

    def encode(self, prompt: Prompt, sampling: SamplingParams) -> tuple[list[int], int]:
        """Token ids, and how many of the oldest turns were left out to fit.

        Raises:
            ContextWindowExceeded: with ``max_new_tokens``, it does not fit the context window.
            InvalidRequest: the model's chat template refuses the messages, or there is nothing to encode.
        """
        room = self._context_window_tokens - sampling.max_new_tokens
        turns = max(len(prompt.messages) - 2, 0) // 2 if prompt.drop_oldest_turns else 0
        fitting: tuple[list[int], int] | None = None
        # Newest first: a history can be many times what fits, and is long to encode. ``most`` turns are known to fit,
        # ``too_many`` not to; fewer turns are fewer tokens.
        most, too_many = -1, turns + 1
        kept = _likely_to_fit(prompt.messages, turns, room)
        while too_many - most > 1:
            tokens = self._encode_once(prompt, turns - kept)
            if not tokens:
                raise InvalidRequest(problem="The prompt is empty for this model's tokenizer.")
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

    def _encode_once(self, prompt: Prompt, dropped_turns: int) -> list[int]:
        if prompt.text is not None:
            if not self._control.search(prompt.text):
                tokens = list(self._tokenizer(prompt.text)["input_ids"])
                return self._checked(tokens, allowed=self._count_control(self._around))
            return [*self._around, *self._encode_data(prompt.text)]
        system, rest = prompt.messages[:1], prompt.messages[1:]
        return self._encode_messages([*system, *rest[2 * dropped_turns :]])

    def _encode_messages(self, messages: Sequence[Message]) -> list[int]:
        if not any(self._control.search(message.content) for message in messages):
            rendered = self._render(messages)
            return self._checked(self._encode_text(rendered), allowed=len(self._control.findall(rendered)))
        # Render with placeholders that no client can guess, then put the ids of the contents in their place.
        marks = [f"\ue000{secrets.token_hex(8)}\ue001" for _ in messages]
        masked = [Message(message.role, mark) for message, mark in zip(messages, marks, strict=True)]
        contents = {mark: message.content for mark, message in zip(marks, messages, strict=True)}
        tokens: list[int] = []
        for piece in re.split("(\ue000[0-9a-f]{16}\ue001)", self._render(masked)):
            tokens += self._encode_data(contents[piece]) if piece in contents else self._encode_text(piece)
        return tokens

    def _render(self, messages: Sequence[Message]) -> str:
        plain = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._apply(plain)
        except TemplateError as error:
            if [message.role for message in messages[:2]] != ["system", "user"]:
                raise InvalidRequest(problem="The model's chat template refuses these messages.") from error
        # Some templates know no system role: the first user turn carries it then.
        folded = {"role": "user", "content": f"{messages[0].content}\n\n{messages[1].content}"}
        try:
            return self._apply([folded, *plain[2:]])
        except TemplateError as error:
            raise InvalidRequest(problem="The model's chat template refuses these messages.") from error

    def _apply(self, messages: list[dict[str, str]]) -> str:
        rendered = self._tokenizer.apply_chat_template(
            messages, chat_template=self._template, add_generation_prompt=True, tokenize=False
        )
        return str(rendered)

    def _encode_text(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []

    def _encode_data(self, text: str) -> list[int]:
        """Encode what a client wrote: the characters of control tokens, never the tokens."""
        pieces, start = [], 0
        while found := self._control.search(text, start):
            pieces.append(text[start : found.start() + 1])
            start = found.start() + 1
        pieces.append(text[start:])
        encoded = self._tokenizer([piece for piece in pieces if piece] or [""], add_special_tokens=False)["input_ids"]
        return self._checked([token for tokens in encoded for token in tokens], allowed=0)

    def _checked(self, tokens: list[int], *, allowed: int) -> list[int]:
        """The tokens, unless more of them are control than may be: a normalizer can make them of other characters."""
        if self._count_control(tokens) > allowed:
            raise InvalidRequest(problem="The text holds characters that this model reserves for control.")
        return tokens

    def _count_control(self, tokens: Sequence[int]) -> int:
        return sum(token in self._control_ids for token in tokens)


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

"""The body of ``/v1/completions``: texts to continue."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints

from inferapi.api.openai.schema import MAX_CHOICES, OpenAiPolicy, SamplingBody, TokenLimit, refused
from inferapi.api.openai.strictness import COMPLETION
from inferapi.domain.generation import Prompt, SamplingParams

MAX_LOGPROBS = 5
_MAX_TOKENS = 16  # OpenAI's default, of this route alone

PromptText = Annotated[str, StringConstraints(min_length=1, max_length=1_000_000)]
_PromptTexts = Annotated[list[PromptText], Field(fail_fast=True, min_length=1, max_length=MAX_CHOICES)]


def as_texts(prompt: Any) -> Any:
    """One text as a list of one; token ids are refused."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int | list):
        raise ValueError("send text, not token ids")
    return [prompt] if isinstance(prompt, str) else prompt


class TextBody(SamplingBody):
    """What to continue."""

    tolerated = COMPLETION

    prompt: Annotated[_PromptTexts, BeforeValidator(as_texts, json_schema_input_type=PromptText | _PromptTexts)]
    max_tokens: TokenLimit | None = Field(None, description="Default: 16.")
    logprobs: int | None = Field(
        None, ge=0, le=MAX_LOGPROBS, description="Tell the log-probabilities of the tokens, and of so many likeliest."
    )

    def prompts(self) -> list[Prompt]:
        """The texts, each by itself.

        Raises:
            InvalidRequest: with all their choices they are too many.
        """
        if len(self.prompt) * self.choices > MAX_CHOICES:
            raise refused("n", f"at most {MAX_CHOICES} choices of all prompts together")
        return [Prompt(text=text) for text in self.prompt]

    def text_sampling(self, policy: OpenAiPolicy) -> SamplingParams:
        """The parameters for the engine.

        Raises:
            InvalidRequest: fields contradict each other, or the server's limits.
        """
        limit = min(_MAX_TOKENS, policy.max_new_tokens) if self.max_tokens is None else self.max_tokens
        return self.sampling(limit, policy, top_logprobs=self.logprobs)

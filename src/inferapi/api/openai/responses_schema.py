"""The body of ``POST /v1/responses``, and what of it is told again with the response."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StringConstraints

from inferapi.api.openai.chat_schema import MAX_TOP_LOGPROBS
from inferapi.api.openai.response_input import Input
from inferapi.api.openai.response_settings import ReasoningConfig, ResponseTool, TextConfig, ToolChoiceField
from inferapi.api.openai.schema import OpenAiPolicy, PlainText, SamplingBody, TokenLimit, refused
from inferapi.api.openai.strictness import CHAT, Tolerated, accepted
from inferapi.api.openai.tool_schema import MAX_TOOLS, chosen
from inferapi.application.responses import Question

LOGPROBS = "message.output_text.logprobs"
"""The one thing that can be included."""

_RESPONSE: Mapping[str, Tolerated] = {
    "background": Tolerated("work ends with its client", values=(False,)),
    "context_management": Tolerated("nothing is compacted", values=([],)),
    "conversation": Tolerated("previous_response_id goes on with what was said"),
    "max_tool_calls": Tolerated("it is about tools that run on the server, and there are none", types=(int,)),
    "moderation": CHAT["moderation"],
    "prompt": Tolerated("prompts are not kept on the server"),
    "prompt_cache_options": CHAT["prompt_cache_options"],
    "prompt_cache_retention": CHAT["prompt_cache_retention"],
    "service_tier": CHAT["service_tier"],
    "truncation": Tolerated("nothing is left out of an input that is too long", values=("disabled",)),
}

_MOST_METADATA = 16


def _as_few(metadata: Any) -> Any:
    if isinstance(metadata, dict) and len(metadata) > _MOST_METADATA:  # before each of them is looked at
        raise ValueError(f"at most {_MOST_METADATA} labels")
    return metadata


Label = Annotated[str, StringConstraints(max_length=512)]
Metadata = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    Field(max_length=_MOST_METADATA),
    BeforeValidator(_as_few),
]


class ResponseBody(SamplingBody):
    """A question, alone or after a stored response."""

    tolerated = _RESPONSE

    input: Input
    instructions: PlainText | None = Field(
        None, description="A system message in front; those of earlier responses are not carried along."
    )
    previous_response_id: Annotated[str, StringConstraints(max_length=128)] | None = Field(
        None, description="The stored response to go on from; any number of responses may."
    )
    store: bool | None = Field(None, description="Keep the response, as long as a session. Default: true.")
    max_output_tokens: TokenLimit | None = Field(
        None, description="Default: what the context window has room for, at most the server's limit."
    )
    text: TextConfig | None = None
    tools: Annotated[list[ResponseTool], Field(fail_fast=True, max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoiceField | None = Field(None, description="Default: auto.")
    parallel_tool_calls: bool | None = Field(None, description="False: one call at most. Default: true.")
    include: Annotated[list[Label], Field(fail_fast=True, max_length=16)] | None = Field(
        None, description=f"{LOGPROBS}: tell the log-probabilities of the tokens."
    )
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS, description=f"Beside {LOGPROBS}.")
    reasoning: ReasoningConfig | None = None
    metadata: Metadata | None = Field(None, description="Kept with the response, and told again.")
    user: Label | None = Field(None, description="A label of yours, told again.")
    safety_identifier: Label | None = Field(None, description="A label of yours, told again.")
    prompt_cache_key: Label | None = Field(None, description="Told again; prefixes are found again without it.")

    def unsupported(self) -> Iterator[tuple[str, str]]:
        """See ``OpenAiBody``."""
        if self.choices > 1:
            yield "n", "a response is one answer"
        if self.stream_options is not None and self.stream_options.include_usage:
            yield "stream_options.include_usage", "the last event tells the usage in any case"
        for number, included in enumerate(self.include or ()):
            if included != LOGPROBS:
                yield f"include[{number}]", "there is no such thing here to be included"

    def question(self, owner: str, policy: OpenAiPolicy) -> Question:
        """What is asked for.

        Raises:
            InvalidRequest: fields contradict each other, or the server's limits, or are not supported.
            ModelNameInvalid: ``model`` is no model name.
        """
        tools = self.tools or ()
        warnings = accepted(self, lenient=policy.lenient_params)
        includes_logprobs = LOGPROBS in (self.include or ())
        if self.top_logprobs and not includes_logprobs:
            raise refused("top_logprobs", f"only beside {LOGPROBS} in include")
        sampling = self.sampling(
            self.max_output_tokens,
            policy,
            limit_param="max_output_tokens",
            top_logprobs=(self.top_logprobs or 0) if includes_logprobs else None,
            constraint=self.text.format.constraint() if self.text and self.text.format else None,
        )
        return Question(
            owner=owner,
            items=tuple(item.item() for item in self.input),
            sampling=sampling,
            tool_choice=chosen(self.tool_choice.choice() if self.tool_choice else None, [tool.name for tool in tools]),
            instructions=self.instructions,
            previous_response_id=self.previous_response_id,
            has_limit=self.max_output_tokens is not None,
            stores=self.store is not False,
            tools=tuple(tool.tool() for tool in tools),
            parallel_tool_calls=self.parallel_tool_calls is not False,
            model=self.ref(),
            told=self._told() | ({"warnings": list(warnings)} if warnings else {}),
        )

    def _told(self) -> dict[str, object]:
        """The settings, as every response tells them again."""
        return {
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": self.previous_response_id,
            "prompt_cache_key": self.prompt_cache_key,
            "reasoning": {"effort": None, "summary": None},
            "safety_identifier": self.safety_identifier,
            "service_tier": "default",
            "store": self.store is not False,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": {"format": self.text.format.told() if self.text and self.text.format else {"type": "text"}},
            "tool_choice": self.tool_choice.told() if self.tool_choice else "auto",
            "tools": [tool.told() for tool in self.tools or ()],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "truncation": "disabled",
            "user": self.user,
        }

"""What a chat template can do, found out from the template alone: by reading it and by rendering probes.

A template is a program of a stranger. It is rendered only where its text names what is looked for, in a thread of its
own, and for a while only: one that does not end can do nothing.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PATIENCE_S = 10.0  # for what takes milliseconds
_MOST_INTERRUPTS = 3
_REASONING_TAGS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))
_HERMES, _MISTRAL, _LLAMA3 = "<tool_call>", "[TOOL_CALLS]", ("<|python_tag|>", "Environment: ipython")
_NO_JSON = ("<function=", "<arg_key>")  # within the same tags as Hermes, some write calls as something like XML
_QUESTION = "inferapi_probe_question"
_TOOL_NAME = "inferapi_probe_tool"
_PARAMETERS = {"type": "object", "properties": {"of": {"type": "string", "description": "of"}}, "required": ["of"]}
_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": _TOOL_NAME, "description": "A probe.", "parameters": _PARAMETERS},
}


@dataclass(frozen=True, slots=True)
class TemplateFacts:
    """What a template can do; the names are those of ``EngineFacts``.

    Attributes:
        knows_tools: it renders them, be it in a format that is known here or not.
    """

    knows_tools: bool = False
    tool_format: str | None = None
    reasoning_tags: tuple[str, str] | None = None
    reasons_from_start: bool = False


def template_facts(tokenizer: PreTrainedTokenizerBase) -> TemplateFacts:
    """Look at the tokenizer's own template, and at its added tokens."""
    template, for_tools = _text(tokenizer, None), _text(tokenizer, [_TOOL])
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    # One that opens the tag leaves it to the model to close it; one that only drops the reasoning of earlier turns
    # names the end alone.
    known = (tags for tags in _REASONING_TAGS if tags[0] in template or added.issuperset(tags))
    tags = next(known, None)
    knows_tools = "tools" in for_tools and _is_so(partial(_renders_tools, tokenizer))
    return TemplateFacts(
        knows_tools=knows_tools,
        tool_format=_tool_format(for_tools) if knows_tools else None,
        reasoning_tags=tags,
        reasons_from_start=tags is not None and tags[0] in template and _is_so(partial(_ends_inside, tokenizer, tags)),
    )


def _text(tokenizer: PreTrainedTokenizerBase, tools: list[Any] | None) -> str:
    """The template that transformers takes; some tokenizers have one for tools beside the default."""
    if not tokenizer.chat_template:
        return ""
    try:
        return str(tokenizer.get_chat_template(tools=tools))
    except ValueError:  # several, and none of them is the default
        return ""


def _tool_format(template: str) -> str | None:
    """How calls are written, from the marks that the template itself puts around earlier ones."""
    if _MISTRAL in template:
        return "mistral"
    if _HERMES in template:
        return None if any(mark in template for mark in _NO_JSON) else "hermes"
    return "llama3" if any(mark in template for mark in _LLAMA3) else None


def _renders_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    return _TOOL_NAME in _render(tokenizer, [_TOOL]) and _TOOL_NAME not in _render(tokenizer, None)


def _ends_inside(tokenizer: PreTrainedTokenizerBase, tags: tuple[str, str]) -> bool:
    """Whether what follows the question opens a tag and does not close it."""
    begin = _render(tokenizer, None).rpartition(_QUESTION)[2]
    return begin.rfind(tags[0]) > begin.rfind(tags[1])


def _render(tokenizer: PreTrainedTokenizerBase, tools: list[Any] | None) -> str:
    messages = [{"role": "user", "content": _QUESTION}]
    return str(tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False))


def _is_so(question: Callable[[], bool]) -> bool:
    """The answer to ``question``; no, where it fails or does not end."""
    answers: list[bool] = []

    def ask() -> None:
        with suppress(Exception, SystemExit):
            answers.append(question())

    thread = threading.Thread(target=ask, name="template", daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
    for _ in range(_MOST_INTERRUPTS):  # a finalizer may swallow one
        if not thread.is_alive():
            break
        # CPython raises it in that thread between two bytecodes. One call into C ends first; while such a call keeps
        # the interpreter's lock, whoever misses this process's beats ends the load.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        thread.join(_PATIENCE_S)
    return answers == [True]

"""Responses and their items as OpenAI's clients read them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from inferapi.api.openai.errors import openai_error
from inferapi.api.openai.logprobs import encoded, listed
from inferapi.application.response_items import CallItem, CallOutputItem, Item, MessageItem, ReasoningItem
from inferapi.application.response_records import Response
from inferapi.application.responses import Begun
from inferapi.domain.errors import InferapiError
from inferapi.domain.generation import ChosenToken, FinishReason, Usage


def response_object(response: Response, output: Sequence[dict[str, Any]] | None = None) -> dict[str, Any]:
    """A response that is whole, or as whole as it gets; with the objects of its ``output``, if there are such."""
    is_whole = response.finish_reason != FinishReason.LENGTH
    return _object(response.response_id, response.created_at_s, response.model) | {
        "status": "completed" if is_whole else "incomplete",
        "completed_at": int(response.completed_at_s) if is_whole else None,
        "incomplete_details": None if is_whole else {"reason": "max_output_tokens"},
        "output": [item_object(item) for item in response.output] if output is None else [*output],
        "usage": usage_object(response.usage),
        **response.told,
    }


def begun_object(begun: Begun) -> dict[str, Any]:
    """A response whose output is still to come."""
    return {**_object(begun.response_id, begun.created_at_s, begun.model), **begun.told}


def failed_object(begun: Begun, output: Sequence[dict[str, Any]], error: InferapiError) -> dict[str, Any]:
    """A response that came to nothing, with the items that were done before."""
    told = openai_error(error)
    return begun_object(begun) | {
        "status": "failed",
        "error": {"code": told["code"], "message": told["message"]},
        "output": [*output],
    }


def item_object(item: Item) -> dict[str, Any]:
    """An item, sent or answered."""
    if isinstance(item, MessageItem):
        return {
            "id": item.item_id,
            "type": "message",
            "status": item.status,
            "role": item.speaker,
            "content": [part_object(item, text) for text in item.texts],
        }
    if isinstance(item, CallItem):
        return {
            "id": item.item_id,
            "type": "function_call",
            "status": item.status,
            "call_id": item.call_id,
            "name": item.name,
            "arguments": item.arguments,
        }
    if isinstance(item, CallOutputItem):
        return {
            "id": item.item_id,
            "type": "function_call_output",
            "status": "completed",
            "call_id": item.call_id,
            "output": item.text,
        }
    return {
        "id": item.item_id,
        "type": "reasoning",
        "status": item.status,
        "summary": [{"type": "summary_text", "text": text} for text in item.summaries],
        "content": [part_object(item, text) for text in item.texts],
    }


def part_object(item: MessageItem | ReasoningItem, text: str) -> dict[str, Any]:
    """One part of an item's content. The log-probabilities of an answer are those of its only part."""
    if isinstance(item, ReasoningItem):
        return {"type": "reasoning_text", "text": text}
    if item.speaker != "assistant":
        return {"type": "input_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs(item.tokens)}


def logprobs(tokens: Sequence[ChosenToken]) -> msgspec.Raw:
    """Each token, and the likeliest ones in its place, in JSON."""
    return listed([encoded(tokens)])


def usage_object(usage: Usage) -> dict[str, Any]:
    """The tokens. Those of reasoning are among the output's."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.total_tokens,
    }


def _object(response_id: str, created_at_s: float, model: str) -> dict[str, Any]:
    """What every response begins with, as long as nothing else is known of it."""
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(created_at_s),
        "status": "in_progress",
        "completed_at": None,
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "usage": None,
    }

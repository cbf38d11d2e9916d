"""Messages and tools in the structures that chat templates expect.

They are those of transformers' documentation ("Tool use"). Templates differ in what they insist on beyond it, so there
are several ways to put the same messages; whoever renders tries one after the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from inferapi.domain.chat import Message, ToolCall
from inferapi.domain.errors import InvalidRequest
from inferapi.domain.generation import Tool

Put = Callable[[str], str]
"""Makes of a client's string what the template is given for it."""

_NO_PARAMETERS = {"type": "object", "properties": {}}
_SHORT_ID_CHARACTERS = 9


@dataclass(frozen=True, slots=True)
class Manner:
    """A way to put messages.

    Attributes:
        text_arguments: arguments of calls as the text that they came as, not as the object in it.
        short_ids: ids of calls as nine letters and digits: Mistral's templates take no others.
        folds_system: the system prompt with the first user turn: some templates know no system role.
    """

    text_arguments: bool = False
    short_ids: bool = False
    folds_system: bool = False


def manners(messages: Sequence[Message]) -> Iterator[Manner]:
    """The ways that make a difference to these messages, the usual one first."""
    has_calls = any(message.tool_calls or message.tool_call_id is not None for message in messages)
    has_system = [message.role for message in messages[:2]] == ["system", "user"]
    choices = ((False, True) if has else (False,) for has in (has_calls, has_calls, has_system))
    return (Manner(*choice) for choice in product(*choices))


def template_messages(messages: Sequence[Message], manner: Manner, put: Put) -> list[dict[str, Any]]:
    """Messages as ``apply_chat_template`` takes them; every string that a client wrote has gone through ``put``."""
    names = {call.call_id: call.name for message in messages for call in message.tool_calls}
    template = [_message(message, names, manner, put) for message in messages]
    if manner.folds_system:
        system, user, *rest = template
        template = [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]
    return template


def template_tools(tools: Sequence[Tool], put: Put) -> list[dict[str, Any]] | None:
    """Tools as ``apply_chat_template`` takes them; ``None`` for none.

    Raises:
        InvalidRequest: the parameters of one are no JSON object.
    """
    return [_tool(tool, put) for tool in tools] or None


def _tool(tool: Tool, put: Put) -> dict[str, Any]:
    parameters = _json_object(tool.parameters or "{}")
    if parameters is None:
        raise InvalidRequest(problem="tools: the parameters of a function are a JSON schema, an object.")
    function = {
        "name": put(tool.name),
        "description": put(tool.description),
        "parameters": _with_strings(parameters or _NO_PARAMETERS, put),
    }
    return {"type": "function", "function": function}


def _message(message: Message, names: Mapping[str, str], manner: Manner, put: Put) -> dict[str, Any]:
    template: dict[str, Any] = {"role": message.role, "content": put(message.content)}
    name = message.name
    if message.tool_call_id is not None:
        template["tool_call_id"] = _call_id(message.tool_call_id, manner, put)
        name = name or names.get(message.tool_call_id)  # templates that tell whose answer it is ask for it
    if name is not None:
        template["name"] = put(name)
    if message.tool_calls:  # a key without calls would be calls to some templates
        template["tool_calls"] = [_call(call, manner, put) for call in message.tool_calls]
    return template


def _call(call: ToolCall, manner: Manner, put: Put) -> dict[str, Any]:
    arguments = None if manner.text_arguments else _json_object(call.arguments)
    function = {
        "name": put(call.name),
        "arguments": put(call.arguments) if arguments is None else _with_strings(arguments, put),
    }
    return {"id": _call_id(call.call_id, manner, put), "type": "function", "function": function}


def _call_id(call_id: str, manner: Manner, put: Put) -> str:
    if manner.short_ids:
        return hashlib.sha256(call_id.encode(errors="replace")).hexdigest()[:_SHORT_ID_CHARACTERS]
    return put(call_id)


def _with_strings(value: Any, put: Put) -> Any:
    """A JSON value whose strings, the names in objects included, have gone through ``put``."""
    if isinstance(value, str):
        return put(value)
    if isinstance(value, dict):
        return {put(name): _with_strings(item, put) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_strings(item, put) for item in value]
    return value


def _json_object(text: str) -> dict[str, Any] | None:
    """The object in a JSON text; ``None`` where there is another value, or what can be neither read nor written."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None

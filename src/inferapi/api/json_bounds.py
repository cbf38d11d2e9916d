"""JSON within bounds: what a body may hold is limited before anything is built of it or looks into it."""

from __future__ import annotations

import json
import re
from typing import Any

from inferapi.api.errors import ProblemException
from inferapi.domain.errors import InvalidRequest

MOST_VALUES = 32_768
"""Room for a conversation of 2048 messages, 4096 parts in all, with 128 tools."""
MOST_LEVELS = 100
MOST_FIELDS = 1024
"""Of one object. Each field that nobody knows costs a refusal of its own, ten times what reading it cost."""
_TOKENS_A_VALUE = 4  # at most: the value if it is a string, its key, a comma and a bracket
# A string, or what stands before a value: a comma, or the bracket of a container that is not empty. A string without an
# end goes to the end of the text, so that no other can begin inside it: one pass, whatever the text is. Nothing is
# given back (possessive, ``*+``), so that no mark is kept for each of millions of escapes.
_TOKEN = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|(,|[\[{](?!\s*+[\]}]))', re.DOTALL)


def bounded_json(body: bytes, most_values: int = MOST_VALUES, *, takes_nul: bool = False) -> Any:
    """The value that ``body`` is in JSON.

    Work and memory are bounded by its length and by ``most_values``, whether or not it is JSON. With ``takes_nul`` its
    texts may have the character U+0000, which many a program that reads them later takes for their end.

    Raises:
        ProblemException: it has more than ``most_values`` values, containers included and keys not, or is nested
            more than ``MOST_LEVELS`` deep, or an object has more than ``MOST_FIELDS`` fields, or a text has U+0000.
        ValueError: it is no JSON in UTF-8.
        RecursionError: it is nested deeper than Python can follow.
    """
    text = body.decode("utf-8")
    if _has_more_values(text, most_values):
        raise _refused(f"more than {most_values} values")
    value = json.loads(text)
    _require_modest(value)
    # In JSON it can only be written as an escape; the same characters may also follow an escaped backslash.
    if not takes_nul and "\\u0000" in text and _has_nul(value):
        raise _refused("a text with the character U+0000")
    return value


def _has_more_values(text: str, most: int) -> bool:
    """Whether ``text``, if it is JSON, has more than ``most`` values.

    Each value but the outermost stands behind a comma or behind the bracket of its container.
    """
    if sum(map(text.count, ",[{")) < most:  # those within strings included: few texts need a closer look
        return False
    begun = 0
    for seen, token in enumerate(_TOKEN.finditer(text)):
        begun += token.lastindex is not None
        # More strings than its values could have: then it is no JSON, and not worth a parser's time either.
        if begun >= most or seen >= _TOKENS_A_VALUE * most:
            return True
    return False


def _require_modest(value: Any) -> None:
    """Look at the containers level by level, so that no depth can be too much.

    Raises:
        ProblemException: see ``bounded_json``.
    """
    level = [value]
    for _ in range(MOST_LEVELS + 1):
        containers = [each for each in level if isinstance(each, dict | list)]
        if not containers:
            return
        if any(isinstance(each, dict) and len(each) > MOST_FIELDS for each in containers):
            raise _refused(f"an object of more than {MOST_FIELDS} fields")
        level = [inner for each in containers for inner in (each.values() if isinstance(each, dict) else each)]
    raise _refused(f"nested more than {MOST_LEVELS} levels deep")


def _has_nul(value: Any) -> bool:
    left = [value]
    while left:
        one = left.pop()
        if isinstance(one, str) and "\0" in one:
            return True
        if isinstance(one, dict):
            left += [*one, *one.values()]
        elif isinstance(one, list):
            left += one
    return False


def _refused(problem: str) -> ProblemException:
    return ProblemException(InvalidRequest(problem=f"body: {problem}"))

"""What an answer must look like, made into a matcher: JSON schemas and grammars, compiled by llguidance.

llguidance (https://github.com/guidance-ai/llguidance) parses by Earley's algorithm over a lexer of derivatives of
regular expressions, and tells at each token which ones may follow.

What a client writes is compiled in a thread of its own: nothing breaks off a call into Rust, and whoever waits must
not wait for ever. The library's limits bound what such a call can take; the checks here bound what it is given.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from inferapi.domain.errors import InvalidRequest, QueueFull
from inferapi.domain.generation import Constraint, ConstraintKind
from inferapi.engine.matching import AnswerMatcher, as_reason

log = logging.getLogger(__name__)

MOST_CHARACTERS = {ConstraintKind.JSON_SCHEMA: 128 * 1024, ConstraintKind.GRAMMAR: 512 * 1024}
MOST_NODES = 20_000  # values of a schema, whatever they are
MOST_DEPTH = 64
MOST_REFERENCES = 1_000

# As clients know them. A grammar may hold a response format too, behind the reasoning of a model that reasons.
_FIELDS = {ConstraintKind.JSON_SCHEMA: "response_format", ConstraintKind.GRAMMAR: "tools or response_format"}
_COMPILE_LIMIT_S = 5.0
_MOST_COMPILED = 8
_SLICE_S = 0.25  # whoever waits can be interrupted between two of them
_STACK_BYTES = 256 * 1024**2  # of addresses: the library follows references by recursion, up to 50,000 steps

# White space between any two tokens would let a model go on with it for ever.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}

_T = TypeVar("_T")


class Constrainer:
    """Compiles constraints for one model, one after the other; for a single thread.

    Args:
        make_tokenizer: makes the model's tokenizer as llguidance wants it: costly, and called when it is first
            needed. What it raises, but for want of memory, says that there can be none.
        compile_limit_s: how long a constraint may take to compile.
    """

    def __init__(self, make_tokenizer: Callable[[], LLTokenizer], *, compile_limit_s: float = _COMPILE_LIMIT_S) -> None:
        self._make_tokenizer = make_tokenizer
        self._compile_limit_s = compile_limit_s
        self._tokenizer: _Job[LLTokenizer] | None = None
        self._has_no_tokenizer = False
        self._last: _Job[LLMatcher] | None = None
        self._compiled: OrderedDict[Constraint, LLMatcher] = OrderedDict()  # clients repeat them, and so do choices

    def matcher(self, constraint: Constraint) -> AnswerMatcher:
        """A matcher at the beginning of an answer. May be interrupted; what was begun then ends by itself.

        Raises:
            InvalidRequest: it is too large, takes too long, or is none that can be kept; the problem says why.
            QueueFull: an earlier one that took too long still runs.
        """
        field = _FIELDS[constraint.kind]
        if (compiled := self._compiled.get(constraint)) is not None:
            self._compiled.move_to_end(constraint)
            return AnswerMatcher(compiled.deep_copy(), self._made_tokenizer(field).vocab_size, field)
        grammar = _grammar(constraint, field)
        tokenizer = self._made_tokenizer(field)
        if self._last is not None and not self._last.wait(self._compile_limit_s):
            raise QueueFull(waiting=1)
        self._last = job = _Job(lambda: LLMatcher(tokenizer, grammar, log_level=0, limits=_limits()))
        if not job.wait(self._compile_limit_s):
            raise InvalidRequest(problem=f"{field}: it takes longer than {self._compile_limit_s:g} s to compile.")
        self._last = None
        try:
            matcher = job.result()
        except (MemoryError, OSError):
            raise
        except Exception as error:
            log.warning("a constraint could not be compiled", exc_info=error)
            raise InvalidRequest(problem=f"{field}: it cannot be compiled.") from error
        if matcher.is_error():
            raise InvalidRequest(problem=f"{field}: it cannot be enforced ({as_reason(matcher.get_error())}).")
        self._compiled[constraint] = matcher.deep_copy()
        if len(self._compiled) > _MOST_COMPILED:
            self._compiled.popitem(last=False)
        return AnswerMatcher(matcher, tokenizer.vocab_size, field)

    def _made_tokenizer(self, field: str) -> LLTokenizer:
        problem = f"{field}: this model's tokenizer allows no constrained answers."
        if self._has_no_tokenizer:
            raise InvalidRequest(problem=problem)
        if self._tokenizer is None:
            self._tokenizer = _Job(self._make_tokenizer)
        self._tokenizer.wait()
        try:
            return self._tokenizer.result()
        except (MemoryError, OSError):
            self._tokenizer = None  # there may be memory later
            raise
        except Exception as error:
            self._tokenizer, self._has_no_tokenizer = None, True
            log.warning("this model's answers cannot be constrained", exc_info=error)
            raise InvalidRequest(problem=problem) from error


class _Job(Generic[_T]):
    """A call in a thread of its own, which nobody has to wait for."""

    def __init__(self, call: Callable[[], _T]) -> None:
        self._call = call
        self._ended = threading.Event()
        self._results: list[_T] = []
        self._error: Exception | None = None
        before_bytes = threading.stack_size(_STACK_BYTES)
        try:
            threading.Thread(target=self._run, name="constraint", daemon=True).start()
        finally:
            threading.stack_size(before_bytes)

    def _run(self) -> None:
        try:
            self._results.append(self._call())
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            self._error = error
        except BaseException as error:  # noqa: BLE001 - a panic in Rust is no Exception
            self._error = RuntimeError(type(error).__name__)
        finally:
            self._ended.set()

    def wait(self, limit_s: float | None = None) -> bool:
        """Whether it has ended within the limit."""
        waited_s = 0.0
        while not self._ended.wait(_SLICE_S):
            waited_s += _SLICE_S
            if limit_s is not None and waited_s >= limit_s:
                return False
        return True

    def result(self) -> _T:
        """What came of it; once it has ended."""
        if self._error is not None:
            raise self._error
        return self._results[0]


def _limits() -> LLParserLimits:
    """Some milliseconds for a mask, and at worst 100 MB for an answer's lexer."""
    return LLParserLimits(
        max_items_in_row=2_000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=250_000,
        verbose_errors=False,
    )


def _grammar(constraint: Constraint, field: str) -> str:
    """The constraint in llguidance's own JSON, so that it is read as its kind and as nothing else."""
    definition, most = constraint.definition, MOST_CHARACTERS[constraint.kind]
    if len(definition) > most:
        raise InvalidRequest(problem=f"{field}: it has {len(definition)} characters, {most} are allowed.")
    if constraint.kind is ConstraintKind.GRAMMAR:
        return json.dumps({"grammars": [{"lark_grammar": definition}]})
    return json.dumps({"grammars": [{"json_schema": _checked_schema(definition, field) | {"x-guidance": _LAYOUT}}]})


def _checked_schema(definition: str, field: str) -> dict[str, object]:
    """A schema that is no larger than allowed, and refers to nothing outside."""
    try:
        schema = json.loads(definition, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(problem=f"{field}: the schema is not valid JSON.") from error
    if not isinstance(schema, dict):
        raise InvalidRequest(problem=f"{field}: the schema is not a JSON object.")
    nodes = references = 0
    layer: list[object] = [schema]
    for _ in range(MOST_DEPTH):
        nodes += len(layer)
        if nodes > MOST_NODES:
            raise InvalidRequest(problem=f"{field}: the schema has more than {MOST_NODES} values.")
        found = [each["$ref"] for each in layer if isinstance(each, dict) and isinstance(each.get("$ref"), str)]
        references += len(found)
        if references > MOST_REFERENCES:
            raise InvalidRequest(problem=f"{field}: the schema has more than {MOST_REFERENCES} references.")
        if not all(reference.startswith("#") for reference in found):
            raise InvalidRequest(problem=f"{field}: a $ref of the schema must begin with #, and stay inside of it.")
        layer = [value for each in layer for value in _values(each)]
        if not layer:
            return schema
    raise InvalidRequest(problem=f"{field}: the schema is nested more than {MOST_DEPTH} deep.")


def _values(node: object) -> list[object]:
    if isinstance(node, dict):
        return list(node.values())
    return node if isinstance(node, list) else []


def _refuse_constant(name: str) -> object:
    raise ValueError(name)  # NaN and infinities are no JSON

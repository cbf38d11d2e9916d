"""What a body may hold: counted before anything is built of it, and no closer than that."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inferapi.api.errors import ProblemException
from inferapi.api.json_bounds import MOST_FIELDS, MOST_LEVELS, MOST_VALUES, bounded_json

leaves = st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('a",[]{}:\\ \n'), max_size=8)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=6),
    max_leaves=40,
)


def count(value) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + sum(map(count, inner))


def refusal(body: bytes, most_values: int = MOST_VALUES) -> str | None:
    """What is wrong with it, if its bounds are."""
    try:
        bounded_json(body, most_values)
    except ProblemException as error:
        return error.error.message
    return None


@given(values, st.integers(1, 30), st.sampled_from([None, 1]))
@example([[], {}, " [,] "], 4, None)
@example([[], {}, " [,] "], 3, None)
def test_values_are_counted_exactly_however_they_are_written(value, most, indent):
    body = json.dumps(value, indent=indent).encode()
    if count(value) > most:
        assert refusal(body, most) == f"body: more than {most} values"
    else:
        assert bounded_json(body, most) == value


@given(st.binary(max_size=200) | st.text(st.sampled_from('"\\[]{},:1e- a'), max_size=200).map(str.encode))
def test_whatever_is_sent_it_is_a_value_or_an_error_that_is_expected(body):
    try:
        value = bounded_json(body, 10)
    except (ProblemException, ValueError, RecursionError):
        return
    assert count(value) <= 10


def test_commas_and_brackets_within_a_text_are_no_values():
    text = 'a, b, [c], {d}; \\" ' * 20_000
    assert bounded_json(json.dumps({"text": text}).encode()) == {"text": text}


def test_as_many_values_as_may_be_are_read_and_one_more_is_refused():
    assert len(bounded_json(json.dumps([0] * (MOST_VALUES - 1)).encode())) == MOST_VALUES - 1
    assert refusal(json.dumps([0] * MOST_VALUES).encode()) == f"body: more than {MOST_VALUES} values"


def test_as_many_levels_as_may_be_are_read_and_one_more_is_refused():
    for begins, ends in (("[", "]"), ('{"a":', "}")):
        deepest = f"{begins * MOST_LEVELS}1{ends * MOST_LEVELS}".encode()
        assert refusal(deepest) is None
        assert refusal(b"[" + deepest + b"]") == f"body: nested more than {MOST_LEVELS} levels deep"


def test_as_many_fields_as_may_be_are_read_and_one_more_is_refused_wherever_the_object_is():
    most = {str(number): number for number in range(MOST_FIELDS)}
    assert bounded_json(json.dumps([most]).encode()) == [most]
    told = refusal(json.dumps({"a": [most | {"one": "more"}]}).encode())
    assert told == f"body: an object of more than {MOST_FIELDS} fields"


@pytest.mark.parametrize(
    "body",
    [
        '"' + ",[{" * 20_000 + '\\"' * 2_000_000,  # each escaped quotation mark might begin a string of its own
        "," * 40_000 + '"' * 4_000_000,
        "[ " + " " * 4_000_000 + "," * 40_000,
        "[" * 40_000 + " " * 4_000_000,
        '"' + "," * 40_000 + '"' + '""' * 2_000_000,
    ],
    ids=["a string without an end", "quotation marks", "blanks", "brackets before blanks", "strings side by side"],
)
@pytest.mark.timeout(60)  # what takes more than one pass over it would take days
def test_what_is_no_json_is_found_out_in_one_pass(body):
    with pytest.raises((ProblemException, ValueError)):
        bounded_json(body.encode())


@pytest.mark.parametrize("body", [b"", b"{", b'"\xff"', '"ä"'.encode("utf-16"), b"[1] 2", b"9" * 5000])
def test_what_is_no_json_in_utf8_is_a_value_error(body):
    with pytest.raises(ValueError):
        bounded_json(body)

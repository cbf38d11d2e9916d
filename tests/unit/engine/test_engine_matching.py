"""Which tokens may come next is told for many answers at once, and nothing but a token moves an answer on."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from tokenizers import Tokenizer

from inferapi.domain.errors import InvalidRequest
from inferapi.domain.generation import Constraint, ConstraintKind
from inferapi.engine.constraints import Constrainer
from inferapi.engine.matching import AnswerMatcher, TokenMasks, as_reason

END = 256


@pytest.fixture
def ids(byte_tokenizer: Tokenizer) -> Callable[[str], list[int]]:
    return lambda text: byte_tokenizer.encode(text).ids


@pytest.fixture
def matcher(constrainer: Constrainer) -> Callable[[str], AnswerMatcher]:
    """Of a grammar in llguidance's Lark."""
    return lambda grammar: constrainer.matcher(Constraint(ConstraintKind.GRAMMAR, grammar))


def allowed(*matchers: AnswerMatcher) -> list[list[int]]:
    return [np.flatnonzero(row).tolist() for row in TokenMasks().allowed(matchers)]


def test_each_answer_has_a_row_of_its_own_as_wide_as_the_vocabulary(matcher, ids) -> None:
    one, other = matcher('start: "ab" | "ac" | "b"'), matcher("start: /[0-9]*/")

    masks = TokenMasks().allowed([one, other])

    assert masks.shape == (2, END + 1)
    assert allowed(one, other) == [ids("ab"), sorted([*ids("0123456789"), END])]


def test_a_token_narrows_down_what_may_follow(matcher, ids) -> None:
    one = matcher('start: "ab" | "ac" | "b"')

    one.take(*ids("a"), is_end=False)

    assert allowed(one) == [ids("bc")]
    assert not one.is_complete


def test_to_look_at_the_masks_moves_nothing_on(matcher) -> None:
    one, masks = matcher('start: "ab" | "ac" | "b"'), TokenMasks()

    first = masks.allowed([one]).copy()

    assert np.array_equal(masks.allowed([one]), first)


def test_an_answer_is_complete_when_nothing_can_follow(matcher, ids) -> None:
    one = matcher('start: "ab"')
    complete = []
    for token in ids("ab"):
        one.take(token, is_end=False)
        complete.append(one.is_complete)

    assert complete == [False, True]
    assert allowed(one) == [[END]]


def test_an_answer_that_may_go_on_may_end_too(matcher, ids) -> None:
    one = matcher("start: /[0-9]+/")
    one.take(*ids("4"), is_end=False)

    assert END in allowed(one)[0]
    one.take(END, is_end=True)


def test_an_answer_does_not_end_before_its_time(matcher, ids) -> None:
    one = matcher('start: "ab"')
    one.take(*ids("a"), is_end=False)

    with pytest.raises(InvalidRequest):
        one.take(END, is_end=True)


def test_an_answer_that_failed_stays_so(matcher, ids) -> None:
    one = matcher('start: "ab"')
    with pytest.raises(InvalidRequest, match="tools or response_format"):
        one.take(*ids("x"), is_end=False)

    for token, is_end in ((*ids("a"), False), (END, True)):
        with pytest.raises(InvalidRequest):
            one.take(token, is_end=is_end)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("Unknown format: x.\n<more>\n", "Unknown format: x"),
        ("\n  tabs\tand\x1b[31m colours \n", "tabs and [31m colours"),
        ("", ""),
        ("a" * 500, "a" * 200 + "..."),
    ],
)
def test_a_library_s_error_becomes_one_short_line(error: str, reason: str) -> None:
    assert as_reason(error) == reason


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_any_number_of_answers_is_asked_for_at_once(matcher, ids, rows: int) -> None:
    matchers: Sequence[AnswerMatcher] = [matcher(f'start: "{letter}"') for letter in "abcde"[:rows]]

    assert allowed(*matchers) == [ids(letter) for letter in "abcde"[:rows]]

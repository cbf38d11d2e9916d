from __future__ import annotations

import re
from string import Formatter

import pytest

from inferapi.domain import errors
from inferapi.domain.errors import InferapiError, ModelLoadFailed, error_named, leaves

LEAVES = list(leaves())


def make(leaf: type[InferapiError]) -> InferapiError:
    """A leaf with a fact for every field of its text."""
    return leaf(**{field: f"some {field}" for _, field, _, _ in Formatter().parse(leaf.text) if field})


def test_the_tree_has_leaves_of_different_names():
    names = [leaf.__name__ for leaf in LEAVES]
    assert len(names) == len(set(names)) > 30


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_leaf_has_a_stable_code_and_a_text_that_its_facts_fill(leaf):
    error = make(leaf)
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", error.code)
    assert len(error.message) > 1
    assert "{" not in error.message


@pytest.mark.parametrize("leaf", LEAVES)
def test_every_leaf_can_be_told_again_by_its_name_and_facts(leaf):
    error = make(leaf)
    told = error_named(type(error).__name__, error.facts)
    assert type(told) is leaf
    assert (told.facts, told.message) == (error.facts, error.message)


@pytest.mark.parametrize("name", ["InferapiError", "WrongState", "ValueError", ""])
def test_a_name_that_is_no_leaf_is_refused(name):
    with pytest.raises(KeyError):
        error_named(name, {})


def test_a_note_is_part_of_the_message():
    error = ModelLoadFailed(model="gpt2", problem="no reason")
    error.add_note("Model other is serving again.")
    assert error.message == "Model gpt2 could not be loaded: no reason. Model other is serving again."


def test_a_fact_that_the_text_needs_cannot_be_left_out():
    with pytest.raises(KeyError):
        ModelLoadFailed(model="gpt2")


def test_the_docstring_draws_the_tree_as_it_is():
    drawn = dict(re.findall(r"── (\w+)[ :]+(\w+)$", errors.__doc__, re.MULTILINE))
    drawn |= dict(re.findall(r"── (\w+) +(\w+):", errors.__doc__))
    assert {leaf.__name__: leaf.code for leaf in LEAVES} == {
        name: code for name, code in drawn.items() if name in {leaf.__name__ for leaf in LEAVES}
    }


def test_the_docstring_draws_no_class_that_is_not_there():
    names = re.findall(r"── (\w+)", errors.__doc__)
    assert [name for name in names if not issubclass(getattr(errors, name), InferapiError)] == []


@pytest.mark.parametrize("branch", InferapiError.__subclasses__())
def test_every_leaf_stands_under_its_branch_in_the_docstring(branch):
    drawn: dict[str, list[str]] = {}
    for indent, name in re.findall(r"^ *(│?[ ]*)[├└]── (\w+)", errors.__doc__, re.MULTILINE):
        if not indent:
            top = drawn.setdefault(name, [])
        else:
            top.append(name)
    assert drawn[branch.__name__] == [leaf.__name__ for leaf in branch.__subclasses__()]

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes import make_facts
from inferapi.application.answer_grammar import AnswerGrammar
from inferapi.application.tool_choice import AUTO, NONE, REQUIRED, ToolChoice, constrained, offered
from inferapi.domain.errors import InvalidRequest
from inferapi.domain.generation import Constraint, ConstraintKind, SamplingParams, Tool

FACTS = make_facts(tool_format="hermes")
WEATHER, CLOCK = (Tool(name, "", '{"type": "object", "properties": {}}') for name in ("weather", "clock"))
TOOLS = (WEATHER, CLOCK)
PLAIN = SamplingParams(temperature=0.0, stop=("x",))
VALUE = SamplingParams(constraint=Constraint(ConstraintKind.JSON_SCHEMA, '{"type": "object"}'))


@pytest.mark.parametrize("choice", [AUTO, REQUIRED, ToolChoice.named("clock")])
def test_the_model_is_told_of_all_tools_whichever_it_is_to_call(choice):
    assert offered(TOOLS, choice, FACTS) == TOOLS


def test_the_model_is_told_of_no_tool_that_it_must_not_call():
    assert offered(TOOLS, NONE, FACTS) == ()
    assert offered(TOOLS, NONE, make_facts()) == ()


@pytest.mark.parametrize("choice", [AUTO, NONE])
def test_no_tools_are_no_tools(choice):
    assert offered((), choice, make_facts()) == ()


@pytest.mark.parametrize("choice", [REQUIRED, ToolChoice.named("clock")])
def test_a_call_without_tools_is_refused(choice):
    with pytest.raises(InvalidRequest, match="tool_choice: "):
        offered((), choice, FACTS)


def test_a_call_of_an_unknown_tool_is_refused():
    with pytest.raises(InvalidRequest, match="tool_choice: "):
        offered(TOOLS, ToolChoice.named("rm"), FACTS)


@pytest.mark.parametrize("tool_format", [None, "xml"])
def test_a_template_that_knows_no_tools_refuses_them(tool_format):
    with pytest.raises(InvalidRequest, match=r"tools: .* gpt2 "):
        offered(TOOLS, AUTO, make_facts(tool_format=tool_format))


@pytest.mark.parametrize("choice", [AUTO, NONE])
def test_a_model_that_is_free_is_not_constrained(choice):
    assert constrained(PLAIN, TOOLS, choice, FACTS, is_parallel=True) == PLAIN
    assert constrained(VALUE, (), choice, FACTS, is_parallel=True) == VALUE


def test_required_calls_are_of_any_tool_and_a_named_one_is_of_that_tool():
    grammar = AnswerGrammar(FACTS)
    required = constrained(PLAIN, TOOLS, REQUIRED, FACTS, is_parallel=True)
    named = constrained(PLAIN, TOOLS, ToolChoice.named("clock"), FACTS, is_parallel=True)
    assert required.constraint == grammar.calls(TOOLS)
    assert named.constraint == grammar.calls([CLOCK])
    assert (required.stop, named.temperature) == (("x",), 0.0)


def test_without_parallel_calls_there_is_one():
    sampling = constrained(PLAIN, TOOLS, REQUIRED, FACTS, is_parallel=False)
    assert sampling.constraint == AnswerGrammar(FACTS).calls(TOOLS, most=1)
    assert sampling.constraint != AnswerGrammar(FACTS).calls(TOOLS)


def test_a_response_format_beside_tools_that_may_be_called_is_one_of_both():
    sampling = constrained(VALUE, TOOLS, AUTO, FACTS, is_parallel=False)
    assert sampling.constraint == AnswerGrammar(FACTS).value_or_calls('{"type": "object"}', TOOLS, most=1)


def test_a_strict_tool_is_kept_strictly_where_the_model_is_free_to_call_it():
    strict = (WEATHER, replace(CLOCK, is_strict=True))
    sampling = constrained(PLAIN, strict, AUTO, FACTS, is_parallel=True)
    assert sampling.constraint == AnswerGrammar(FACTS).text_or_calls(strict)


def test_a_response_format_says_nothing_where_there_must_be_calls():
    sampling = constrained(VALUE, TOOLS, REQUIRED, FACTS, is_parallel=True)
    assert sampling.constraint == AnswerGrammar(FACTS).calls(TOOLS)


def test_a_model_that_reasons_may_do_so_before_a_value():
    facts = make_facts(reasoning_tags=("<think>", "</think>"), reasons_from_start=True)
    sampling = constrained(VALUE, (), AUTO, facts, is_parallel=True)
    assert sampling.constraint == AnswerGrammar(facts).value('{"type": "object"}')

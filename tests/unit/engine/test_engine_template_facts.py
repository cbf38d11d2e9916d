"""What a chat template can do is found out from the template alone."""

import threading

import pytest
from tokenizers import AddedToken

from chat_templates import CHATML, HERMES, LLAMA3, MISTRAL, TEXT_ARGUMENTS, THINKING, TOOL_CONTROL, chat_tokenizer
from inferapi.engine import template_facts as module
from inferapi.engine.template_facts import TemplateFacts, template_facts

THINK = ("<think>", "</think>")
ENDLESS = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "tool_format"),
    [(HERMES, "hermes"), (TEXT_ARGUMENTS, "hermes"), (MISTRAL, "mistral"), (LLAMA3, "llama3")],
    ids=["hermes", "text-arguments", "mistral", "llama3"],
)
def test_the_format_of_tool_calls_is_told_by_the_marks_in_the_template(template: str, tool_format: str) -> None:
    assert template_facts(chat_tokenizer(template)) == TemplateFacts(knows_tools=True, tool_format=tool_format)


def test_a_template_for_tools_beside_the_default_is_looked_at() -> None:
    tokenizer = chat_tokenizer({"default": CHATML, "tool_use": HERMES})

    assert template_facts(tokenizer) == TemplateFacts(knows_tools=True, tool_format="hermes")


@pytest.mark.parametrize(
    "template",
    [
        HERMES.replace('{"name": "', "<function="),  # as Qwen3-Coder has it
        HERMES.replace("<tool_call>", "<|tool|>"),
    ],
)
def test_tools_whose_calls_are_written_otherwise_are_known_without_a_format(template: str) -> None:
    assert template_facts(chat_tokenizer(template)) == TemplateFacts(knows_tools=True)


@pytest.mark.parametrize(
    "template",
    [
        None,
        CHATML,
        {"other": HERMES},
        "{# no tools, no <tool_call> #}" + CHATML,
        "{% if tools %}<tool_call>{% endif %}" + CHATML,
        "{{ raise_exception('no tools, no <tool_call>') }}" + HERMES,
        "inferapi_probe_tool <tool_call> {{ tools }}",  # there it is, with tools or without
    ],
    ids=["none", "chatml", "no-default", "comment", "nothing-rendered", "refusing", "always-there"],
)
def test_a_template_that_shows_no_tools_knows_none(template: str | dict[str, str] | None) -> None:
    assert template_facts(chat_tokenizer(template)) == TemplateFacts()


@pytest.mark.parametrize("template", [CHATML, None])
def test_reasoning_is_known_by_its_tokens(template: str | None) -> None:
    facts = template_facts(chat_tokenizer(template, *TOOL_CONTROL))

    assert facts == TemplateFacts(reasoning_tags=THINK)


def test_reasoning_is_known_by_the_template_too() -> None:
    earlier = "{{ '<think>' + 'earlier' + '</think>' if messages | length > 1 else '' }}" + CHATML

    assert template_facts(chat_tokenizer(earlier)) == TemplateFacts(reasoning_tags=THINK)


def test_half_a_pair_of_tags_is_none() -> None:
    assert template_facts(chat_tokenizer(CHATML, AddedToken("<think>"))).reasoning_tags is None


@pytest.mark.parametrize(
    ("end", "inside"),
    [("<think>\n", True), ("<think>\n\n</think>\n\n", False), ("<think>a</think><think>", True), ("", False)],
)
def test_an_answer_begins_inside_where_the_prompt_ends_within_open_tags(end: str, *, inside: bool) -> None:
    template = CHATML.replace("assistant\n' }}", "assistant\n" + end + "' }}")

    assert template_facts(chat_tokenizer(template, *TOOL_CONTROL)).reasons_from_start is inside


def test_a_template_that_opens_the_tag_may_leave_it_to_the_model_to_close_it() -> None:
    facts = template_facts(chat_tokenizer(CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}")))

    assert facts == TemplateFacts(reasoning_tags=THINK, reasons_from_start=True)


def test_tags_in_a_system_prompt_do_not_open_the_answer() -> None:
    template = "{{ 'Think between <think> tags: ' }}" + CHATML

    assert not template_facts(chat_tokenizer(template, *TOOL_CONTROL)).reasons_from_start


def test_a_template_can_do_several_things() -> None:
    facts = template_facts(chat_tokenizer(THINKING, *TOOL_CONTROL))

    assert facts == TemplateFacts(knows_tools=True, tool_format="hermes", reasoning_tags=THINK, reasons_from_start=True)


def test_a_template_that_does_not_end_can_do_nothing_and_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE_S", 0.5)

    facts = template_facts(chat_tokenizer(ENDLESS + "{{ tools }}" + HERMES))

    assert facts == TemplateFacts()
    assert "template" not in [thread.name for thread in threading.enumerate()]


def test_a_template_that_names_neither_tools_nor_reasoning_is_not_rendered() -> None:
    template = ENDLESS + CHATML  # it would take minutes

    assert template_facts(chat_tokenizer(template, *TOOL_CONTROL)) == TemplateFacts(reasoning_tags=THINK)

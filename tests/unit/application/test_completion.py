from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from fakes import TIMINGS, chosen_token, settle
from inferapi.application.answer_parts import Choice, Completed, Part, Started, collected
from inferapi.application.completion import Completion
from inferapi.application.tool_choice import NONE, REQUIRED, ToolChoice
from inferapi.domain.errors import ContextWindowExceeded, InvalidRequest, OutOfMemory, QueueFull
from inferapi.domain.generation import Constraint, ConstraintKind, Prompt, SamplingParams, Tool, Usage
from inferapi.domain.model import ModelRef

GREEDY = SamplingParams(temperature=0.0)
HI = Prompt(text="Hi you")
WEATHER = Tool("weather", "", '{"type": "object", "properties": {}}')
ASKED = Prompt(text="Hi you", tools=(WEATHER,))
CALL = ("<tool_call>\n", '{"name": "weather", ', '"arguments": {', "}}\n", "</tool_call>")


def completion(stage) -> Completion:
    return Completion(stage.lifecycle, stage.clock, 120.0)


async def items_of(stage, prompt: Prompt = HI, sampling: SamplingParams = GREEDY, **options):
    async with aclosing(completion(stage).complete(prompt, sampling, **options)) as items:
        return [item async for item in items]


async def choices_of(stage, prompt: Prompt = HI, sampling: SamplingParams = GREEDY, **options) -> tuple[Choice, ...]:
    return collected((await items_of(stage, prompt, sampling, **options))[1:-1])


async def test_an_answer_is_the_model_then_its_parts_then_the_usage(stage):
    await stage.load()
    assert await items_of(stage) == [
        Started("gpt2"),
        Part(0, text="Hello"),
        Part(0, text=" there"),
        Part(0, finish_reason="stop"),
        Completed(Usage(2, 2), (TIMINGS,)),
    ]


async def test_choices_come_side_by_side_and_the_prompt_counts_once(stage):
    await stage.load()
    first, *parts, last = await items_of(stage, n=3)
    assert first == Started("gpt2")
    assert [(choice.index, choice.text) for choice in collected(parts)] == [
        (0, "Hello there"),
        (1, "Hello there"),
        (2, "Hello there"),
    ]
    assert last == Completed(Usage(2, 6), (TIMINGS,) * 3)
    assert [part.index for part in parts[:3]] == [0, 1, 2]


async def test_choices_have_one_lease_and_run_at_the_same_time(stage):
    await stage.load()
    stage.engine.gate.hold()
    work = asyncio.create_task(items_of(stage, n=3))
    await settle()
    assert stage.engine.running == 3
    assert [line.in_flight for line in stage.lifecycle.status()] == [1]
    stage.engine.gate.open()
    await work
    assert [line.in_flight for line in stage.lifecycle.status()] == [0]


async def test_a_request_whose_choices_wait_for_each_other_is_in_flight(make_stage):
    stage = await make_stage("Hi", max_batch=1)
    await stage.load()
    stage.engine.gate.hold()
    work = asyncio.create_task(items_of(stage, n=3))
    await settle()
    assert [(line.in_flight, line.queued) for line in stage.lifecycle.status()] == [(1, 2)]
    stage.engine.gate.open()
    await work


async def test_each_choice_has_a_seed_of_its_own_where_there_is_one(stage):
    await stage.load()
    await items_of(stage, sampling=SamplingParams(seed=7), n=3)
    await items_of(stage, sampling=SamplingParams(), n=2)
    assert [request.sampling.seed for request in stage.engine.requests] == [7, 8, 9, None, None]


async def test_a_seed_after_the_largest_is_the_smallest(stage):
    await stage.load()
    await items_of(stage, sampling=SamplingParams(seed=2**64 - 1), n=2)
    assert [request.sampling.seed for request in stage.engine.requests] == [2**64 - 1, 0]


async def test_the_engine_is_told_the_deadline_and_whose_request_it_is(stage):
    await stage.load()
    now_s = stage.clock.monotonic_s()
    await items_of(stage, owner="ann", n=2)
    for request in stage.engine.requests:
        assert (request.prompt, request.salt) == (HI, "ann")
        assert (request.arrived_s, request.deadline_s) == (now_s, now_s + 120.0)


@pytest.mark.parametrize("n", [1, 3])
async def test_closing_it_ends_every_choice_and_gives_the_model_back(stage, n):
    await stage.load()
    stage.engine.gate.hold()
    async with aclosing(completion(stage).complete(HI, GREEDY, n=n)) as items:
        assert await anext(items) == Started("gpt2")
        assert stage.engine.in_flight == n
    assert (stage.engine.in_flight, stage.engine.cancelled) == (0, n)
    assert [line.in_flight for line in stage.lifecycle.status()] == [0]


@pytest.mark.parametrize("n", [1, 3])
async def test_cancelling_it_ends_every_choice(stage, n):
    await stage.load()
    stage.engine.gate.hold()
    work = asyncio.create_task(items_of(stage, n=n))
    await settle()
    work.cancel()
    await settle()
    assert (work.cancelled(), stage.engine.in_flight, stage.engine.cancelled) == (True, 0, n)


async def test_the_error_of_one_choice_ends_the_others(make_stage):
    stage = await make_stage(max_batch=1, max_queue=1)
    await stage.load()
    stage.engine.gate.hold()
    with pytest.raises(QueueFull):
        await items_of(stage, n=3)
    assert (stage.engine.in_flight, stage.engine.cancelled) == (0, 2)
    assert [line.in_flight for line in stage.lifecycle.status()] == [0]


@pytest.mark.parametrize("n", [1, 2])
async def test_an_error_in_the_middle_is_the_error_of_the_answer(stage, n):
    await stage.load()
    stage.engine.fail_with = OutOfMemory()
    with pytest.raises(OutOfMemory):
        await items_of(stage, n=n)
    stage.engine.fail_with = None
    assert [choice.text for choice in await choices_of(stage)] == ["Hello there"]


async def test_what_is_wrong_with_the_prompt_is_told_before_the_model_begins(stage):
    await stage.load()
    async with aclosing(completion(stage).complete(Prompt(text="word " * 1000), GREEDY)) as items:
        with pytest.raises(ContextWindowExceeded):
            await anext(items)


async def test_a_named_model_answers(stage):
    first, *_ = await items_of(stage, model=ModelRef.parse("other"))
    assert first == Started("other")


async def test_a_reader_that_waits_holds_up_no_other_choice_for_ever(stage):
    await stage.load()
    async with aclosing(completion(stage).complete(HI, GREEDY, n=2)) as items:
        seen = [await anext(items)]
        await settle()
        seen += [item async for item in items]
    assert seen[-1] == Completed(Usage(2, 4), (TIMINGS,) * 2)


async def test_log_probabilities_come_with_the_parts_they_belong_to(stage):
    await stage.load()
    (choice,) = await choices_of(stage, sampling=SamplingParams(top_logprobs=2))
    assert choice.tokens == (chosen_token("Hello", 1, 2), chosen_token(" there", 2, 2))


# Tools


@pytest.fixture
async def calling(make_stage):
    """A model that writes a call after a word."""
    stage = await make_stage("Well. ", *CALL)
    stage.launcher.facts = {"tool_format": "hermes"}
    await stage.load()
    return stage


async def test_a_call_is_told_apart_from_the_text(calling):
    (choice,) = await choices_of(calling, ASKED)
    assert (choice.text, choice.finish_reason) == ("Well.", "tool_calls")
    assert [(call.name, call.arguments) for call in choice.tool_calls] == [("weather", "{}")]
    (request,) = calling.engine.requests
    assert (request.prompt, request.sampling) == (ASKED, GREEDY)


async def test_a_call_that_the_limit_cut_ends_by_length(calling):
    sampling = SamplingParams(max_new_tokens=4)
    (choice,) = await choices_of(calling, ASKED, sampling)
    assert ([call.arguments for call in choice.tool_calls], choice.finish_reason) == (["{"], "length")


@pytest.mark.parametrize(("prompt", "options"), [(HI, {}), (ASKED, {"tool_choice": NONE}), (HI, {"parses": False})])
async def test_without_tools_a_call_is_text(calling, prompt, options):
    (choice,) = await choices_of(calling, prompt, **options)
    assert (choice.text, choice.tool_calls, choice.finish_reason) == ("Well. " + "".join(CALL), (), "stop")
    assert calling.engine.requests[0].prompt.tools == ()


@pytest.mark.parametrize("choice", [REQUIRED, ToolChoice.named("weather")])
async def test_a_forced_call_is_a_matter_of_a_grammar(calling, choice):
    await items_of(calling, ASKED, tool_choice=choice)
    (request,) = calling.engine.requests
    assert request.prompt.tools == (WEATHER,)
    assert request.sampling.constraint.kind is ConstraintKind.GRAMMAR


async def test_without_parallel_calls_the_second_is_left_out(make_stage):
    stage = await make_stage(*CALL, *CALL)
    stage.launcher.facts = {"tool_format": "hermes"}
    await stage.load()
    (both,) = await choices_of(stage, ASKED)
    (first,) = await choices_of(stage, ASKED, parallel_tool_calls=False)
    assert (len(both.tool_calls), len(first.tool_calls)) == (2, 1)
    assert (first.text, first.finish_reason) == ("", "tool_calls")


@pytest.mark.parametrize(
    ("prompt", "options"), [(ASKED, {}), (ASKED, {"tool_choice": REQUIRED}), (HI, {"tool_choice": REQUIRED})]
)
async def test_a_model_that_knows_no_tools_is_not_asked_for_calls(stage, prompt, options):
    await stage.load()
    async with aclosing(completion(stage).complete(prompt, GREEDY, **options)) as items:
        with pytest.raises(InvalidRequest, match="tool"):
            await anext(items)
    assert stage.engine.requests == []
    assert [line.in_flight for line in stage.lifecycle.status()] == [0]


async def test_a_response_format_beside_tools_that_is_no_schema_is_refused(calling):
    sampling = SamplingParams(constraint=Constraint(ConstraintKind.JSON_SCHEMA, "[]"))
    with pytest.raises(InvalidRequest, match="response_format"):
        await items_of(calling, ASKED, sampling)


# Reasoning


async def test_reasoning_is_told_apart_unless_text_is_to_stay_text(make_stage):
    stage = await make_stage("Hm", ".</th", "ink>", "Yes")
    stage.launcher.facts = {"reasoning_tags": ("<think>", "</think>"), "reasons_from_start": True}
    await stage.load()
    (parsed,) = await choices_of(stage)
    (plain,) = await choices_of(stage, parses=False)
    assert (parsed.reasoning, parsed.text) == ("Hm.", "Yes")
    assert (plain.reasoning, plain.text) == ("", "Hm.</think>Yes")


async def test_a_response_format_waits_for_the_reasoning(make_stage):
    stage = await make_stage("Hm</think>", "{}")
    stage.launcher.facts = {"reasoning_tags": ("<think>", "</think>"), "reasons_from_start": True}
    await stage.load()
    constraint = Constraint(ConstraintKind.JSON_SCHEMA, '{"type": "object"}')
    (parsed,) = await choices_of(stage, sampling=SamplingParams(constraint=constraint))
    await choices_of(stage, sampling=SamplingParams(constraint=constraint), parses=False)
    assert (parsed.reasoning, parsed.text) == ("Hm", "{}")
    kinds = [request.sampling.constraint.kind for request in stage.engine.requests]
    assert kinds == [ConstraintKind.GRAMMAR, ConstraintKind.JSON_SCHEMA]

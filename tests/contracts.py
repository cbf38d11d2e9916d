"""What every adapter of a port does, the fakes included: one class a port; ``session_contract`` has the stores'.

A test class inherits a contract and gives its fixtures; pytest then runs every sentence on that adapter.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from pathlib import PurePath

import pytest

from inferapi.domain.chat import Message
from inferapi.domain.errors import (
    ContextWindowExceeded,
    GenerationAborted,
    GenerationTimeout,
    InvalidRequest,
    ModelNotFound,
    ModelUnavailable,
    QueueFull,
)
from inferapi.domain.generation import (
    Chunk,
    EmbeddingRequest,
    Embeddings,
    FinishReason,
    GenerationRequest,
    Prompt,
    SamplingParams,
    Tool,
)
from inferapi.domain.model import EngineLoad, EngineSpec, ModelRef
from inferapi.domain.ports import Clock, EngineLauncher, GpuProbe, ModelRepository, TextEngine
from inferapi.domain.states import ModelState

SHORT_S = 0.02
BOUND_S = 10.0


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what an engine says of itself a little later; at once where it is true already."""
    async with asyncio.timeout(BOUND_S):
        while not condition():  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.005)


class ClockContract:
    """Give ``clock``, and let time pass in ``pass_time``."""

    @pytest.fixture
    def clock(self) -> Clock:
        raise NotImplementedError

    async def pass_time(self, clock: Clock, duration_s: float) -> None:
        raise NotImplementedError

    async def test_durations_are_measured_by_the_monotonic_clock(self, clock: Clock) -> None:
        before_s = clock.monotonic_s()
        await self.pass_time(clock, SHORT_S)
        assert clock.monotonic_s() - before_s >= SHORT_S * 0.9

    async def test_the_wall_clock_tells_seconds_since_the_epoch(self, clock: Clock) -> None:
        year_2020_s, year_2100_s = 1_577_836_800, 4_102_444_800
        assert year_2020_s < clock.wall_s() < year_2100_s

    async def test_a_sleep_lasts_as_long_as_was_asked(self, clock: Clock) -> None:
        before_s = clock.monotonic_s()
        sleeping = asyncio.create_task(clock.sleep(SHORT_S))
        await self.pass_time(clock, 2 * SHORT_S)
        async with asyncio.timeout(BOUND_S):
            await sleeping
        assert clock.monotonic_s() - before_s >= SHORT_S * 0.9

    async def test_a_sleep_of_nothing_ends_by_itself(self, clock: Clock) -> None:
        async with asyncio.timeout(BOUND_S):
            await clock.sleep(0)

    async def test_a_cancelled_sleep_ends_at_once(self, clock: Clock) -> None:
        sleeping = asyncio.create_task(clock.sleep(3600))
        await asyncio.sleep(0)
        sleeping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sleeping


class GpuProbeContract:
    """Give ``probe``."""

    @pytest.fixture
    def probe(self) -> GpuProbe:
        raise NotImplementedError

    def test_free_memory_is_part_of_the_total(self, probe: GpuProbe) -> None:
        device = probe.device()
        assert 0 <= device.free_bytes <= device.total_bytes
        assert device.total_bytes > 0

    def test_it_says_what_a_worker_takes_before_any_weight(self, probe: GpuProbe) -> None:
        device = probe.device()
        assert 0 < device.overhead_bytes < device.total_bytes

    def test_it_counts_and_names_the_device(self, probe: GpuProbe) -> None:
        device = probe.device()
        assert device.count >= 1
        assert device.name

    def test_a_reading_is_quick_enough_for_the_event_loop(self, probe: GpuProbe) -> None:
        started_s = time.perf_counter()
        probe.device()
        assert time.perf_counter() - started_s < 0.25


class ModelRepositoryContract:
    """Give ``repository``, the name of a model that it ``known`` and of one that it does not: ``unknown``."""

    @pytest.fixture
    def repository(self) -> ModelRepository:
        raise NotImplementedError

    @pytest.fixture
    def known(self) -> ModelRef:
        raise NotImplementedError

    @pytest.fixture
    def unknown(self) -> ModelRef:
        return ModelRef("nobody/ever-made-this")

    async def test_local_models_are_names_without_revision_and_moments(self, repository: ModelRepository) -> None:
        local = await repository.local()

        assert all(ref.revision is None and written_s >= 0 for ref, written_s in local.items())

    async def test_a_profile_is_of_the_model_that_was_named(self, repository: ModelRepository, known: ModelRef) -> None:
        assert (await repository.profile(known)).ref == known

    async def test_a_profile_tells_all_that_memory_depends_on(
        self, repository: ModelRepository, known: ModelRef
    ) -> None:
        profile = await repository.profile(known)
        assert sum(profile.parameters_by_dtype.values()) > 0
        assert profile.stored_bytes > 0
        assert all(layer.elements_per_token > 0 for layer in profile.layers)
        assert len(profile.layers) > 0
        assert min(profile.hidden_size, profile.intermediate_size, profile.vocab_size) > 0
        assert profile.context_window_tokens > 0

    async def test_fetching_again_gives_the_same_absolute_folder(
        self, repository: ModelRepository, known: ModelRef
    ) -> None:
        profile = await repository.profile(known)
        folder = await repository.fetch(profile, lambda *_: None)
        assert PurePath(folder).is_absolute()
        assert await repository.fetch(profile, lambda *_: None) == folder

    async def test_what_a_fetch_reports_is_bytes_of_a_download_and_never_more_than_all(
        self, repository: ModelRepository, known: ModelRef
    ) -> None:
        profile = await repository.profile(known)
        reports: list[tuple[ModelState, int, int]] = []
        await repository.fetch(profile, lambda *report: reports.append(report))
        assert {stage for stage, _, _ in reports} <= {ModelState.DOWNLOADING}
        assert all(0 <= done <= total for _, done, total in reports)
        assert [total for _, _, total in reports] == [profile.download_bytes] * len(reports)
        assert reports or profile.download_bytes == 0

    async def test_an_unknown_model_has_no_profile(self, repository: ModelRepository, unknown: ModelRef) -> None:
        with pytest.raises(ModelNotFound):
            await repository.profile(unknown)

    async def test_an_unknown_model_cannot_be_fetched(
        self, repository: ModelRepository, known: ModelRef, unknown: ModelRef
    ) -> None:
        profile = await repository.profile(known)
        with pytest.raises(ModelNotFound):
            await repository.fetch(replace(profile, ref=unknown), lambda *_: None)


def ask(text: str = "Once upon a time", *, max_new_tokens: int = 8, deadline_s: float = 60.0, **sampling: float):
    """A greedy request, counted from now on the system's monotonic clock."""
    now_s = time.monotonic()
    params = SamplingParams(**{"max_new_tokens": max_new_tokens, "temperature": 0.0, **sampling})
    return GenerationRequest(Prompt(text=text), params, now_s, now_s + deadline_s)


def ask_for_long(engine: TextEngine) -> GenerationRequest:
    """A request that is still running after its first chunk."""
    return ask(max_new_tokens=min(512, engine.facts.context_window_tokens // 2), ignore_eos=True)


async def listen(engine: TextEngine, request: GenerationRequest) -> list[Chunk]:
    async with asyncio.timeout(6 * BOUND_S):
        return [chunk async for chunk in engine.generate(request)]


def said(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


async def embed(engine: TextEngine, *texts: str, deadline_s: float = 60.0) -> Embeddings:
    now_s = time.monotonic()
    async with asyncio.timeout(6 * BOUND_S):
        return await engine.embed(EmbeddingRequest(texts, now_s, now_s + deadline_s))


class TextEngineContract:
    """Give ``engine``: it runs two requests at once, and lets one more wait. Its words can be any."""

    @pytest.fixture
    def engine(self) -> TextEngine:
        raise NotImplementedError

    async def test_the_last_chunk_alone_carries_finish(self, engine: TextEngine) -> None:
        chunks = await listen(engine, ask(ignore_eos=True))
        assert chunks[-1].finish is not None
        assert [chunk.finish for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)

    async def test_an_answer_ends_at_its_limit_of_tokens(self, engine: TextEngine) -> None:
        finish = (await listen(engine, ask(max_new_tokens=3, ignore_eos=True)))[-1].finish
        assert finish is not None
        assert finish.reason is FinishReason.LENGTH
        assert finish.usage.completion_tokens == 3
        assert finish.usage.prompt_tokens > 0
        assert finish.usage.dropped_turns == 0

    async def test_timings_are_durations_in_their_order(self, engine: TextEngine) -> None:
        finish = (await listen(engine, ask(ignore_eos=True)))[-1].finish
        assert finish is not None
        timings = finish.timings
        assert 0 <= timings.queue_s <= timings.time_to_first_token_s <= timings.total_s
        assert timings.inter_token_latency_s >= 0

    async def test_a_greedy_answer_is_the_same_again(self, engine: TextEngine) -> None:
        first, second = await listen(engine, ask()), await listen(engine, ask())
        assert said(first) == said(second)

    async def test_a_seeded_answer_is_the_same_again(self, engine: TextEngine) -> None:
        first, second = [await listen(engine, ask(temperature=1.0, seed=7)) for _ in range(2)]
        assert said(first) == said(second)

    async def test_answers_side_by_side_are_those_given_alone(self, engine: TextEngine) -> None:
        prompts = ["Once upon a time", "The sea", "My name is"]
        alone = [said(await listen(engine, ask(prompt, ignore_eos=True))) for prompt in prompts]
        together = await asyncio.gather(*(listen(engine, ask(prompt, ignore_eos=True)) for prompt in prompts))
        assert [said(chunks) for chunks in together] == alone

    async def test_closing_the_generator_frees_the_slot(self, engine: TextEngine) -> None:
        async with aclosing(engine.generate(ask_for_long(engine))) as chunks:
            await anext(chunks)
        await until(lambda: engine.load.running == 0)
        assert (await listen(engine, ask()))[-1].finish is not None

    async def test_cancelling_the_reader_frees_the_slot(self, engine: TextEngine) -> None:
        reading = asyncio.create_task(listen(engine, ask_for_long(engine)))
        await asyncio.sleep(0)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        await until(lambda: engine.load.running == 0)
        assert (await listen(engine, ask()))[-1].finish is not None

    async def test_a_full_queue_refuses_and_the_others_go_on(self, engine: TextEngine) -> None:
        async with (
            aclosing(engine.generate(ask_for_long(engine))) as one,
            aclosing(engine.generate(ask_for_long(engine))) as two,
        ):
            await anext(one)
            await anext(two)
            third = asyncio.create_task(listen(engine, ask()))
            await until(lambda: engine.load.waiting == 1)
            with pytest.raises(QueueFull):
                await listen(engine, ask())
            await one.aclose()
            assert (await third)[-1].finish is not None
            await anext(two)
        await until(lambda: engine.load.running == 0)

    async def test_a_prompt_beyond_the_context_window_is_refused(self, engine: TextEngine) -> None:
        window = engine.facts.context_window_tokens
        with pytest.raises(ContextWindowExceeded) as caught:
            await listen(engine, ask("word " * window, max_new_tokens=8))
        assert caught.value.facts["context_window_tokens"] == window
        assert caught.value.facts["max_new_tokens"] == 8
        assert caught.value.facts["prompt_tokens"] > window - 8
        assert (await listen(engine, ask()))[-1].finish is not None

    async def test_a_history_too_long_loses_its_oldest_turns(self, engine: TextEngine) -> None:
        old = "word " * engine.facts.context_window_tokens
        turn = (Message("user", old), Message("assistant", "Yes."))
        request = ask(max_new_tokens=4)
        messages = (Message("system", "Be brief."), *turn, *turn, Message("user", "Why?"))
        prompt = Prompt(messages=messages, drop_oldest_turns=True)
        finish = (
            await listen(
                engine,
                GenerationRequest(prompt, request.sampling, arrived_s=request.arrived_s, deadline_s=request.deadline_s),
            )
        )[-1].finish
        assert finish is not None
        assert finish.usage.dropped_turns == 2

    async def test_a_request_past_its_deadline_is_given_up(self, engine: TextEngine) -> None:
        with pytest.raises(GenerationTimeout):
            await listen(engine, ask(deadline_s=-1.0))
        await until(lambda: engine.load.running == 0)
        assert (await listen(engine, ask()))[-1].finish is not None

    async def test_tools_are_refused_where_the_template_knows_none(self, engine: TextEngine) -> None:
        request = ask()
        prompt = Prompt(messages=(Message("user", "Hi"),), tools=(Tool("weather", "", "{}"),))
        assert engine.facts.tool_format is None
        with pytest.raises(InvalidRequest, match="tools"):
            await listen(engine, replace(request, prompt=prompt))
        assert (await listen(engine, ask()))[-1].finish is not None

    async def test_each_text_becomes_a_vector_of_length_one_in_its_place(self, engine: TextEngine) -> None:
        assert engine.facts.embeds
        found = await embed(engine, "Once upon a time", "The sea", "Once upon a time")
        assert [math.hypot(*vector) for vector in found.vectors] == pytest.approx([1.0] * 3, abs=1e-4)
        assert {len(vector) for vector in found.vectors} == {engine.facts.embedding_dimensions}
        first, other, again = found.vectors
        assert first == pytest.approx(again, abs=1e-5)
        assert first != pytest.approx(other, abs=1e-2)
        assert found.prompt_tokens >= 2 * 4 + 2

    async def test_vectors_beside_answers_are_those_made_alone_and_so_are_the_answers(self, engine: TextEngine) -> None:
        answer = said(await listen(engine, ask(max_new_tokens=32, ignore_eos=True)))
        (alone,) = (await embed(engine, "The sea")).vectors
        answered, one, two = await asyncio.gather(
            listen(engine, ask(max_new_tokens=32, ignore_eos=True)),
            embed(engine, "The sea", "My name is"),
            embed(engine, "Once upon a time", "The sea"),
        )
        assert said(answered) == answer
        assert one.vectors[0] == pytest.approx(alone, abs=1e-5)
        assert two.vectors[1] == pytest.approx(alone, abs=1e-5)

    async def test_a_text_beyond_the_context_window_becomes_no_vector(self, engine: TextEngine) -> None:
        window = engine.facts.context_window_tokens
        with pytest.raises(ContextWindowExceeded) as caught:
            await embed(engine, "short", "word " * (window + 1))
        assert caught.value.facts["context_window_tokens"] == window
        assert caught.value.facts["max_new_tokens"] == 0
        assert caught.value.facts["prompt_tokens"] > window
        assert len((await embed(engine, "short")).vectors) == 1

    async def test_texts_past_their_deadline_are_given_up(self, engine: TextEngine) -> None:
        with pytest.raises(GenerationTimeout):
            await embed(engine, "Once upon a time", deadline_s=-1.0)
        assert len((await embed(engine, "short")).vectors) == 1

    async def test_vectors_that_nobody_waits_for_are_dropped(self, engine: TextEngine) -> None:
        waiting = asyncio.create_task(embed(engine, *["Once upon a time"] * 100))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert len((await embed(engine, "short")).vectors) == 1
        assert (await listen(engine, ask()))[-1].finish is not None

    async def test_after_aclose_no_text_becomes_a_vector(self, engine: TextEngine) -> None:
        await engine.aclose()
        with pytest.raises(GenerationAborted):
            await embed(engine, "Once upon a time")

    async def test_after_aclose_nothing_is_generated(self, engine: TextEngine) -> None:
        assert not engine.is_closed
        await engine.aclose()
        assert engine.is_closed
        assert engine.load == EngineLoad()
        with pytest.raises(GenerationAborted):
            await listen(engine, ask())

    async def test_an_answer_under_way_is_told_of_aclose(self, engine: TextEngine) -> None:
        async with aclosing(engine.generate(ask_for_long(engine))) as chunks:
            await anext(chunks)
            await engine.aclose()
            with pytest.raises(GenerationAborted):
                async for _ in chunks:
                    pass

    async def test_aclose_twice_is_fine_and_ends_every_wait(self, engine: TextEngine) -> None:
        waiting = asyncio.create_task(engine.wait_closed())
        await engine.aclose()
        await engine.aclose()
        async with asyncio.timeout(BOUND_S):
            await waiting

    async def test_facts_tell_what_the_model_became(self, engine: TextEngine) -> None:
        facts = engine.facts
        assert facts.model
        assert facts.batching in {"continuous", "sequential"}
        assert bool(facts.batching_reason) == (facts.batching == "sequential")
        assert min(facts.context_window_tokens, facts.kv_cache_tokens, facts.weights_bytes) > 0
        assert facts.peak_memory_bytes >= facts.memory_bytes > 0

    async def test_the_load_tells_what_the_process_takes_while_it_lives(self, engine: TextEngine) -> None:
        await until(lambda: engine.load.memory_bytes > 0)
        await engine.aclose()
        assert engine.load.memory_bytes == 0


def unheard(_stage: ModelState, _done_bytes: int, _total_bytes: int) -> None:
    """A ``Report`` to nobody."""


class EngineLauncherContract:
    """Give ``launcher``, a ``spec`` that loads, and a ``broken_spec`` that does not."""

    @pytest.fixture
    def launcher(self) -> EngineLauncher:
        raise NotImplementedError

    @pytest.fixture
    def spec(self) -> EngineSpec:
        raise NotImplementedError

    @pytest.fixture
    def broken_spec(self) -> EngineSpec:
        raise NotImplementedError

    async def test_a_launched_engine_answers_and_has_the_name_of_its_spec(
        self, launcher: EngineLauncher, spec: EngineSpec
    ) -> None:
        await launcher.start()
        await launcher.start()
        engine = await launcher.launch(spec, unheard)
        assert engine.facts.model == spec.model
        assert (await listen(engine, ask()))[-1].finish is not None
        await engine.aclose()

    async def test_a_launch_that_fails_says_why_and_the_next_one_works(
        self, launcher: EngineLauncher, spec: EngineSpec, broken_spec: EngineSpec
    ) -> None:
        with pytest.raises(ModelUnavailable):
            await launcher.launch(broken_spec, unheard)
        engine = await launcher.launch(spec, unheard)
        assert not engine.is_closed
        await engine.aclose()

    async def test_closing_one_engine_leaves_the_other(self, launcher: EngineLauncher, spec: EngineSpec) -> None:
        one, two = await launcher.launch(spec, unheard), await launcher.launch(spec, unheard)
        await one.aclose()
        assert (one.is_closed, two.is_closed) == (True, False)
        assert (await listen(two, ask()))[-1].finish is not None
        await two.aclose()

    async def test_a_cancelled_launch_leaves_the_launcher_as_it_was(
        self, launcher: EngineLauncher, spec: EngineSpec
    ) -> None:
        launching = asyncio.create_task(launcher.launch(spec, unheard))
        await asyncio.sleep(0)
        launching.cancel()
        with suppress(asyncio.CancelledError):
            await (await launching).aclose()  # it was quicker
        engine = await launcher.launch(spec, unheard)
        assert (await listen(engine, ask()))[-1].finish is not None
        await engine.aclose()

    async def test_a_launch_tells_of_its_weights_from_none_to_all_and_then_of_warming(
        self, launcher: EngineLauncher, spec: EngineSpec
    ) -> None:
        reports: list[tuple[ModelState, int, int]] = []
        engine = await launcher.launch(spec, lambda *report: reports.append(report))
        await engine.aclose()
        stages = [stage for stage, _, _ in reports]
        loading = [report[1:] for report in reports if report[0] is ModelState.LOADING]
        warming = [report[1:] for report in reports if report[0] is ModelState.WARMING]
        assert stages == [ModelState.LOADING] * len(loading) + [ModelState.WARMING] * len(warming)
        assert warming
        total_bytes = loading[0][1]
        assert total_bytes > 0
        assert (loading[0], loading[-1]) == ((0, total_bytes), (total_bytes, total_bytes))

    async def test_reports_never_go_backwards_within_a_stage(self, launcher: EngineLauncher, spec: EngineSpec) -> None:
        reports: list[tuple[ModelState, int, int]] = []
        engine = await launcher.launch(spec, lambda *report: reports.append(report))
        await engine.aclose()
        for stage in (ModelState.LOADING, ModelState.WARMING):
            of_stage = [report for report in reports if report[0] is stage]
            assert of_stage == sorted(of_stage, key=lambda report: report[1])
            assert len({total for _, _, total in of_stage}) == 1
            assert all(0 <= done <= total for _, done, total in of_stage)

    async def test_a_launch_cancelled_while_weights_are_read_leaves_the_launcher_as_it_was(
        self, launcher: EngineLauncher, spec: EngineSpec
    ) -> None:
        begun = asyncio.Event()
        launching = asyncio.create_task(launcher.launch(spec, lambda *_: begun.set()))
        async with asyncio.timeout(6 * BOUND_S):
            await begun.wait()
        launching.cancel()
        with suppress(asyncio.CancelledError):
            await (await launching).aclose()  # it was quicker
        engine = await launcher.launch(spec, unheard)
        assert (await listen(engine, ask()))[-1].finish is not None
        await engine.aclose()

    async def test_aclose_ends_every_engine(self, launcher: EngineLauncher, spec: EngineSpec) -> None:
        engine = await launcher.launch(spec, unheard)
        await launcher.aclose()
        async with asyncio.timeout(BOUND_S):
            await engine.wait_closed()
        assert engine.is_closed

    async def test_aclose_of_a_launcher_that_never_started_is_fine(self, launcher: EngineLauncher) -> None:
        await launcher.aclose()
        await launcher.aclose()

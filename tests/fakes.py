"""Little adapters that follow a script: each passes its port's contract in ``contracts.py``."""

from __future__ import annotations

import asyncio
import heapq
import math
import struct
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from itertools import count, cycle, islice
from typing import Any

from inferapi.adapters.memory_sessions import MemorySessionStore
from inferapi.domain.chat import Lease, Message, OpenTurn, Session, SessionChange, SessionPage, SessionRef
from inferapi.domain.errors import (
    ContextWindowExceeded,
    EmbeddingsRefused,
    GenerationAborted,
    GenerationTimeout,
    InferapiError,
    InvalidRequest,
    ModelCrashed,
    ModelNotFound,
    QueueFull,
)
from inferapi.domain.generation import (
    ChosenToken,
    Chunk,
    EmbeddingRequest,
    Embeddings,
    Finish,
    FinishReason,
    GenerationRequest,
    Prompt,
    Timings,
    TokenChance,
    Usage,
)
from inferapi.domain.model import (
    Device,
    DeviceKind,
    EngineFacts,
    EngineLoad,
    EngineSpec,
    LayerShape,
    ModelProfile,
    ModelRef,
)
from inferapi.domain.ports import Clock, TextEngine
from inferapi.domain.states import ModelState, Report

MIB = 1024**2
GIB = 1024**3
TIMINGS = Timings(queue_s=0.25, time_to_first_token_s=0.5, inter_token_latency_s=0.125, total_s=1.0)


async def settle() -> None:
    """Let the event loop run until everything that can go on has gone on: nothing here waits for a thread."""
    for _ in range(60):
        await asyncio.sleep(0)


class Gate:
    """A door in a script: open, until a test holds it. ``waiting`` stand before it."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self.waiting = 0

    def hold(self) -> None:
        """Close it."""
        self._open.clear()

    def open(self) -> None:
        """Let everybody through."""
        self._open.set()

    async def passed(self) -> None:
        """Wait until it is open."""
        self.waiting += 1
        try:
            await self._open.wait()
        finally:
            self.waiting -= 1


class FakeClock:
    """A ``Clock`` that stands still until ``advance``."""

    def __init__(self, start_s: float = 1000.0) -> None:
        self._now_s = start_s
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()

    def monotonic_s(self) -> float:
        return self._now_s

    def wall_s(self) -> float:
        return 1_700_000_000.0 + self._now_s

    async def sleep(self, duration_s: float) -> None:
        if duration_s <= 0:
            await asyncio.sleep(0)
            return
        waking: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now_s + duration_s, next(self._order), waking))
        await waking

    async def advance(self, duration_s: float) -> None:
        """Wake sleepers in order, those of one instant together, and let the loop run after each instant."""
        end_s = self._now_s + duration_s
        await settle()
        while self._sleepers and self._sleepers[0][0] <= end_s:
            self._now_s = self._sleepers[0][0]
            while self._sleepers and self._sleepers[0][0] <= self._now_s:
                waking = heapq.heappop(self._sleepers)[2]
                if not waking.done():
                    waking.set_result(None)
            await settle()
        self._now_s = end_s
        await settle()


class FakeGpuProbe:
    """A ``GpuProbe`` that reports what ``reading`` holds, less what ``taken`` says."""

    def __init__(self, reading: Device | None = None) -> None:
        self.reading = reading or make_device()
        self.taken: Callable[[], int] = int

    def device(self) -> Device:
        return replace(self.reading, free_bytes=self.reading.free_bytes - self.taken())


class FakeModelRepository:
    """A ``ModelRepository`` of the given profiles, with scripted errors by model name.

    A fetch makes all of ``fetch_reports`` as (stage, done bytes, total bytes), and then waits at its gate.
    ``local_models`` lie in its folder, whether it knows them or not.
    """

    def __init__(self, *profiles: ModelProfile) -> None:
        self._profiles = {profile.ref.name: profile for profile in profiles}
        self.profile_errors: dict[str, Exception] = {}
        self.local_models: dict[ModelRef, float] = {}
        self.fetch_errors: dict[str, InferapiError] = {}
        self.profile_gate, self.fetch_gate = Gate(), Gate()
        self.fetch_reports: list[tuple[ModelState, int, int]] = []
        self.profiled: list[str] = []
        self.fetched: list[str] = []

    async def profile(self, ref: ModelRef) -> ModelProfile:
        self.profiled.append(str(ref))
        await self.profile_gate.passed()
        if ref.name in self.profile_errors:
            raise self.profile_errors[ref.name]
        return replace(self._known(ref), ref=ref)

    async def local(self) -> dict[ModelRef, float]:
        return dict(self.local_models)

    async def fetch(self, profile: ModelProfile, report: Report) -> str:
        self.fetched.append(str(profile.ref))
        for stage, done_bytes, total_bytes in self.fetch_reports:
            report(stage, done_bytes, total_bytes)
        await self.fetch_gate.passed()
        name = profile.ref.name
        if name in self.fetch_errors:
            raise self.fetch_errors[name]
        return f"/models/{self._known(profile.ref).ref.name}"

    def _known(self, ref: ModelRef) -> ModelProfile:
        if ref.name not in self._profiles:
            raise ModelNotFound(model=str(ref))
        return self._profiles[ref.name]


class ScriptedEngine:
    """A ``TextEngine`` that speaks its words, a token each, then raises ``fail_with`` if given.

    ``gate`` stands before the last word, ``closing_gate`` before the end of ``aclose``. With ``ignore_eos`` the
    words come again and again until ``max_new_tokens``. ``cancelled`` counts answers that nobody read to the end.
    ``memory_bytes`` is what its process takes while it lives.

    A word is as likely as ``chosen_token`` says. A text becomes ``text_vector`` of it, behind ``gate``; ``embedded``
    holds those requests. What its template knows of tools and reasoning is in ``facts``.
    """

    def __init__(
        self,
        *words: str,
        facts: EngineFacts | None = None,
        fail_with: Exception | None = None,
        max_batch: int = 32,
        max_queue: int = 64,
        clock: Clock | None = None,
    ) -> None:
        self._words = words
        self._facts = facts or make_facts()
        self._clock = clock
        self._slots = asyncio.Semaphore(max_batch)
        self._max_queue = max_queue
        self._closed = asyncio.Event()
        self._crashed = False
        self.fail_with = fail_with
        self.memory_bytes = self._facts.memory_bytes
        self.gate, self.closing_gate = Gate(), Gate()
        self.requests: list[GenerationRequest] = []
        self.embedded: list[EmbeddingRequest] = []
        self.in_flight = self.running = self.cancelled = 0

    @property
    def facts(self) -> EngineFacts:
        return self._facts

    @property
    def load(self) -> EngineLoad:
        memory_bytes = 0 if self.is_closed else self.memory_bytes
        return EngineLoad(self.running, self.in_flight - self.running, memory_bytes=memory_bytes)

    @property
    def is_closed(self) -> bool:
        return self._closed.is_set()

    async def wait_closed(self) -> None:
        await self._closed.wait()

    async def aclose(self) -> None:
        self._closed.set()
        await self.closing_gate.passed()

    def crash(self) -> None:
        """Die without being asked to."""
        self._crashed = True
        self._closed.set()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Chunk]:
        self._require_alive()
        self.requests.append(request)
        self._require_tools(request.prompt)
        usage = self._usage(request)
        if self._slots.locked() and self.load.waiting >= self._max_queue:
            raise QueueFull(waiting=self.load.waiting)
        self.in_flight += 1
        finished = False
        try:
            async with self._slots:
                self.running += 1
                try:
                    async with aclosing(self._speak(request, usage)) as chunks:
                        async for chunk in chunks:
                            finished = chunk.finish is not None
                            yield chunk
                finally:
                    self.running -= 1
        except Exception:
            finished = True
            raise
        finally:
            self.in_flight -= 1
            self.cancelled += not finished

    async def _speak(self, request: GenerationRequest, usage: Usage) -> AsyncGenerator[Chunk]:
        limit = request.sampling.max_new_tokens
        spoken = list(islice(cycle(self._words) if request.sampling.ignore_eos else self._words, limit))
        reason = FinishReason.LENGTH if len(spoken) == limit else FinishReason.STOP
        for number, word in enumerate(spoken, start=1):
            last = number == len(spoken)
            if last:
                await self._pass_gate()
            self._require_alive()
            self._require_time(request)
            finish = Finish(reason, replace(usage, completion_tokens=number), TIMINGS)
            top = request.sampling.top_logprobs
            tokens = () if top is None else (chosen_token(word, number, top),)
            yield Chunk(word, finish if last and self.fail_with is None else None, tokens, number)
        if self.fail_with is not None:
            raise self.fail_with

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        self._require_alive()
        self.embedded.append(request)
        if not self._facts.embeds:
            raise EmbeddingsRefused(model=self._facts.model, reason="its script has no vectors")
        counts = [len(text.split()) for text in request.texts]
        window = self._facts.context_window_tokens
        for tokens in counts:
            if tokens > window:
                raise ContextWindowExceeded(prompt_tokens=tokens, max_new_tokens=0, context_window_tokens=window)
        try:
            await self._pass_gate()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        self._require_alive()
        self._require_time(request)
        if self.fail_with is not None:
            raise self.fail_with
        return Embeddings(tuple(text_vector(text) for text in request.texts), sum(counts))

    async def _pass_gate(self) -> None:
        waits: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(self.gate.passed()),
            asyncio.ensure_future(self._closed.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _usage(self, request: GenerationRequest) -> Usage:
        window, dropped = self._facts.context_window_tokens, 0
        droppable = (len(request.prompt.messages) - 2) // 2 if request.prompt.drop_oldest_turns else 0
        while (tokens := prompt_tokens(request.prompt, dropped)) + request.sampling.max_new_tokens > window:
            if dropped == droppable:
                raise ContextWindowExceeded(
                    prompt_tokens=tokens,
                    max_new_tokens=request.sampling.max_new_tokens,
                    context_window_tokens=window,
                )
            dropped += 1
        return Usage(tokens, 0, dropped)

    def _require_tools(self, prompt: Prompt) -> None:
        if prompt.tools and self._facts.tool_format is None:
            raise InvalidRequest(problem="tools: the script knows none.")

    def _require_time(self, request: GenerationRequest | EmbeddingRequest) -> None:
        if self._clock is not None and self._clock.monotonic_s() >= request.deadline_s:
            raise GenerationTimeout(timeout_s=round(request.deadline_s - request.arrived_s, 3))

    def _require_alive(self) -> None:
        if self._crashed:
            raise ModelCrashed(model=self._facts.model)
        if self.is_closed:
            raise GenerationAborted(reason="it was unloaded")


class FakeEngineLauncher:
    """An ``EngineLauncher`` of ``ScriptedEngine``s that all speak the same words.

    ``errors`` holds, by model name, what the next launches of it raise, one each: ``ModelCrashed`` for a process
    that dies while it loads. A launch makes the ``reports`` of loading as (stage, done bytes, total bytes), passes
    ``gate``, makes those of warming, passes ``warming_gate``, and only then fails or is done. ``facts`` changes what
    the next engines say of themselves.
    """

    def __init__(self, *words: str, memory_bytes: int = 2 * GIB) -> None:
        self._words = words or ("Hello", " there")
        self._memory_bytes = memory_bytes
        self.errors: dict[str, list[InferapiError]] = {}
        self.facts: dict[str, Any] = {}
        self.gate, self.warming_gate = Gate(), Gate()
        self.reports: list[tuple[ModelState, int, int]] = [
            (ModelState.LOADING, 0, memory_bytes),
            (ModelState.LOADING, memory_bytes, memory_bytes),
            (ModelState.WARMING, 0, memory_bytes),
        ]
        self.launched: list[EngineSpec] = []
        self.engines: list[ScriptedEngine] = []
        self.cancelled = 0
        self.is_closed = False

    @property
    def live(self) -> list[str]:
        """The models whose engines are there."""
        return [engine.facts.model for engine in self.engines if not engine.is_closed]

    @property
    def newest(self) -> ScriptedEngine:
        """The engine that was launched last."""
        return self.engines[-1]

    async def start(self) -> None: ...

    async def launch(self, spec: EngineSpec, report: Report) -> TextEngine:
        self.launched.append(spec)
        try:
            for stage, gate in ((ModelState.LOADING, self.gate), (ModelState.WARMING, self.warming_gate)):
                for reported in self.reports:
                    if reported[0] is stage:
                        report(*reported)
                await gate.passed()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.errors.get(spec.model):
            raise self.errors[spec.model].pop(0)
        facts = make_facts(
            spec.model, dtype=spec.dtype, quantization=spec.quantization, memory_bytes=self._memory_bytes
        )
        facts = replace(facts, **self.facts)
        engine = ScriptedEngine(*self._words, facts=facts, max_batch=spec.max_batch, max_queue=spec.max_queue)
        self.engines.append(engine)
        return engine

    async def aclose(self) -> None:
        self.is_closed = True
        for engine in self.engines:
            engine.closing_gate.open()
            await engine.aclose()


class FlakySessionStore(MemorySessionStore):
    """A ``SessionStore`` that works, but for the methods that a script names.

    Attributes:
        errors: by method: it raises, and nothing was done.
        late_errors: by method: it raises, and all was done: its answer was lost.
        gates: by method: it waits here before it does anything.
        calls: the methods that were called, in order.
    """

    def __init__(self, clock: Clock, ttl_s: float = 3600.0) -> None:
        super().__init__(clock, ttl_s)
        self.errors: dict[str, InferapiError] = {}
        self.late_errors: dict[str, InferapiError] = {}
        self.gates: defaultdict[str, Gate] = defaultdict(Gate)
        self.calls: list[str] = []

    async def begin(self, ref: SessionRef, holder: str, lease_s: float) -> OpenTurn | None:
        async with self._scripted("begin"):
            return await super().begin(ref, holder, lease_s)

    async def renew(self, lease: Lease, lease_s: float) -> bool:
        async with self._scripted("renew"):
            return await super().renew(lease, lease_s)

    async def end(self, ref: SessionRef, holder: str) -> None:
        async with self._scripted("end"):
            await super().end(ref, holder)

    async def commit(self, lease: Lease, before: Session, change: SessionChange, at_s: float) -> Session:
        async with self._scripted("commit"):
            return await super().commit(lease, before, change, at_s)

    async def create(self, session: Session) -> None:
        async with self._scripted("create"):
            await super().create(session)

    async def get(self, ref: SessionRef) -> Session | None:
        async with self._scripted("get"):
            return await super().get(ref)

    async def delete(self, ref: SessionRef) -> bool:
        async with self._scripted("delete"):
            return await super().delete(ref)

    async def page(self, owner: str, limit: int, cursor: str | None) -> SessionPage:
        async with self._scripted("page"):
            return await super().page(owner, limit, cursor)

    async def system_prompt(self) -> str | None:
        async with self._scripted("system_prompt"):
            return await super().system_prompt()

    async def set_system_prompt(self, prompt: str) -> None:
        async with self._scripted("set_system_prompt"):
            await super().set_system_prompt(prompt)

    async def ping(self) -> None:
        async with self._scripted("ping"):
            await super().ping()

    @asynccontextmanager
    async def _scripted(self, method: str) -> AsyncGenerator[None]:
        self.calls.append(method)
        await self.gates[method].passed()
        if method in self.errors:
            raise self.errors[method].again()
        yield
        if method in self.late_errors:
            raise self.late_errors[method].again()


def prompt_tokens(prompt: Prompt, dropped_turns: int = 0) -> int:
    """A word is a token."""
    messages: tuple[Message, ...] = prompt.messages[:1] + prompt.messages[1 + 2 * dropped_turns :]
    return len((prompt.text or "").split()) + sum(len(message.content.split()) for message in messages)


def chosen_token(word: str, number: int, top_logprobs: int) -> ChosenToken:
    """What ``ScriptedEngine`` tells of its ``number``-th word: its chance, before others that are less likely."""
    chances = [
        TokenChance(100 * number + rank, text, text.encode(), -number / 8 - rank)
        for rank, text in enumerate([word, *(f"{word}~{rank}" for rank in range(1, top_logprobs))])
    ]
    return ChosenToken(chances[0], tuple(chances[:top_logprobs]))


def text_vector(text: str) -> tuple[float, ...]:
    """What ``ScriptedEngine`` makes of a text: four float32 numbers of length 1, others for another text."""
    numbers = [byte - 127.5 for byte in sha256(text.encode()).digest()[:4]]
    length = math.hypot(*numbers)
    return struct.unpack("<4f", struct.pack("<4f", *(number / length for number in numbers)))


NO_COMPILER = "there is no compiler"


def make_device(
    *,
    total_bytes: int = 16 * GIB,
    free_bytes: int = 12 * GIB,
    bfloat16: bool = True,
    overhead_bytes: int = 160 * MIB,
    native_kernels: bool = False,
) -> Device:
    return Device(
        DeviceKind.CPU,
        "fake",
        1,
        total_bytes,
        free_bytes,
        bfloat16,
        overhead_bytes,
        native_kernels=native_kernels,
        native_kernels_reason="" if native_kernels else NO_COMPILER,
    )


def make_profile(name: str = "gpt2", **changes: Any) -> ModelProfile:
    """A model of a billion bf16 numbers, unless told otherwise."""
    profile = ModelProfile(
        ref=ModelRef.parse(name),
        architecture="LlamaForCausalLM",
        parameters_by_dtype={"BF16": 1_000_000_000},
        stored_bytes=2_000_000_000,
        layers=(LayerShape(kv_heads=4, key_dim=64, value_dim=64),) * 8,
        hidden_size=1024,
        intermediate_size=4096,
        vocab_size=32_000,
        context_window_tokens=4096,
    )
    return replace(profile, **changes)


def make_facts(model: str = "gpt2", **changes: Any) -> EngineFacts:
    """What a ``ScriptedEngine`` became."""
    facts = EngineFacts(
        model=model,
        device="cpu",
        dtype="bfloat16",
        attention="scripted",
        attention_reason="there is no other",
        batching="continuous",
        batching_reason="",
        context_window_tokens=1024,
        kv_cache_tokens=4096,
        weights_bytes=270_000_000,
        memory_bytes=2 * GIB,
        load_s=0.5,
        peak_memory_bytes=changes.get("memory_bytes", 2 * GIB),
        embeds=True,
        embedding_dimensions=len(text_vector("")),
    )
    return replace(facts, **changes)

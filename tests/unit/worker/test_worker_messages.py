"""Everything that crosses the process border arrives as it was sent."""

from __future__ import annotations

import dataclasses
from string import Formatter

import msgspec
import pytest

from fakes import TIMINGS, make_facts
from inferapi.domain.chat import Message as ChatMessage
from inferapi.domain.chat import ToolCall
from inferapi.domain.errors import GenerationTimeout, InsufficientMemory, leaves
from inferapi.domain.generation import (
    ChosenToken,
    Chunk,
    Constraint,
    ConstraintKind,
    EmbeddingRequest,
    Finish,
    FinishReason,
    GenerationRequest,
    Prompt,
    SamplingParams,
    TokenChance,
    Tool,
    Usage,
)
from inferapi.domain.model import DeviceKind, EngineLoad, EngineSpec
from inferapi.domain.states import ModelState
from inferapi.domain.telemetry import FirstToken, StepTally
from inferapi.worker import messages
from inferapi.worker.messages import (
    HEADER_BYTES,
    Beat,
    Cancel,
    Embed,
    Embedded,
    Exited,
    Failure,
    Fork,
    Forked,
    FromForkServer,
    FromWorker,
    Generate,
    Kill,
    Load,
    Loaded,
    LoadFailed,
    Progress,
    StepDone,
    ToForkServer,
    ToWorker,
    body_bytes,
    encode,
    frame,
)

TEXT = GenerationRequest(Prompt(text='é\n\x00🙂 "{}"'), SamplingParams(), 12.5, 312.5)
CHAT = GenerationRequest(
    Prompt(messages=(ChatMessage("system", ""), ChatMessage("user", "Hi")), drop_oldest_turns=True),
    SamplingParams(
        max_new_tokens=1,
        temperature=0.0,
        top_k=5,
        top_p=0.5,
        min_p=0.1,
        repetition_penalty=1.0,
        seed=2**64 - 1,
        stop=("a", "b"),
        min_new_tokens=1,
        ignore_eos=True,
    ),
    12.5,
    312.5,
    affinity="s1",
)
TOOLS = GenerationRequest(
    Prompt(
        messages=(
            ChatMessage("user", "Hi", name="Ann"),
            ChatMessage("assistant", "", tool_calls=(ToolCall("call_1", "weather", '{"city": "Köln"}'),)),
            ChatMessage("tool", "Rain", tool_call_id="call_1"),
        ),
        tools=(Tool("weather", "Tells the weather.", "{}"),),
    ),
    SamplingParams(
        presence_penalty=-2.0,
        frequency_penalty=0.5,
        logit_bias=((0, -100.0), (2**31, 1.5)),
        top_logprobs=0,
        constraint=Constraint(ConstraintKind.GRAMMAR, "start: /a/"),
    ),
    12.5,
    312.5,
)
CHOSEN = ChosenToken(TokenChance(7, "\ufffd", b"\xc3", -0.25), (TokenChance(8, "é", "é".encode(), -0.125),))
SPEC = EngineSpec("org/name@v1", "/models/é", DeviceKind.CUDA, 2, "bfloat16", 4096, 32, 64, threads=3)
FINISH = Finish(FinishReason.LENGTH, Usage(10, 20, 1), TIMINGS)
STEP = StepDone(
    EngineLoad(2, 1, 0.25),
    [(1, Chunk("é")), (2, Chunk("", FINISH))],
    [(3, Failure.of(GenerationTimeout(timeout_s=30.0)))],
)
SENT = [
    (ToForkServer, Fork(1)),
    (ToForkServer, Kill(2**40)),
    (FromForkServer, Forked(2**40)),
    (FromForkServer, Exited(3, -9)),
    (ToWorker, Load(SPEC)),
    (ToWorker, Load(dataclasses.replace(SPEC, threads=None, device=DeviceKind.CPU))),
    (ToWorker, Generate(1, TEXT)),
    (ToWorker, Generate(2, CHAT)),
    (ToWorker, Generate(3, dataclasses.replace(CHAT, sampling=SamplingParams(seed=-(2**63))))),
    (ToWorker, Generate(5, TOOLS)),
    (ToWorker, Embed(6, EmbeddingRequest(("é\n", ""), 12.5, 312.5))),
    (ToWorker, Cancel(4)),
    (FromWorker, Beat(2**40)),
    (FromWorker, Progress(ModelState.WARMING, 0, 2**40)),
    (FromWorker, Loaded(make_facts())),
    (FromWorker, Loaded(make_facts(tool_format="hermes", reasoning_tags=("<think>", "</think>"), embeds=False))),
    (FromWorker, LoadFailed(Failure.of(GenerationTimeout(timeout_s=0.5)))),
    (FromWorker, STEP),
    (FromWorker, StepDone(EngineLoad(), [], [])),
    (FromWorker, StepDone(EngineLoad(), [], [], StepTally(7, 0, 9, (FirstToken(0.5, 1.5),), ((0.125, 8),)))),
    (FromWorker, StepDone(EngineLoad(), [(1, Chunk("é", tokens=(CHOSEN,)))], [])),
    (FromWorker, Embedded(6, bytes(range(256)), 3)),
]


@pytest.mark.parametrize(("channel", "message"), SENT, ids=lambda value: type(value).__name__)
def test_a_message_arrives_as_it_was_sent(channel, message):
    received = msgspec.msgpack.Decoder(channel).decode(encode(message))
    assert received == message
    assert type(received) is type(message)


@pytest.mark.parametrize(("channel", "message"), SENT, ids=lambda value: type(value).__name__)
def test_a_frame_says_its_length_in_front(channel, message):
    data = frame(message) + frame(message)
    length = body_bytes(data[:HEADER_BYTES])
    assert len(data) == 2 * (HEADER_BYTES + length)
    assert msgspec.msgpack.Decoder(channel).decode(data[HEADER_BYTES : HEADER_BYTES + length]) == message


def test_no_message_is_left_untested():
    kinds = {kind for kind in vars(messages).values() if isinstance(kind, type) and issubclass(kind, messages.Message)}
    assert kinds - {messages.Message, Failure} == {type(message) for _, message in SENT}


def test_domain_values_are_of_their_own_types_again():
    received = msgspec.msgpack.Decoder(FromWorker).decode(encode(STEP))
    finish = received.chunks[1][1].finish
    assert type(finish.reason) is FinishReason
    assert type(received.load) is EngineLoad
    spec = msgspec.msgpack.Decoder(ToWorker).decode(encode(Load(SPEC))).spec
    assert type(spec.device) is DeviceKind


@pytest.mark.parametrize("leaf", list(leaves()))
def test_every_error_arrives_as_it_was_raised(leaf):
    facts = {field: f"some {field}" for _, field, _, _ in Formatter().parse(leaf.text) if field}
    sent = LoadFailed(Failure.of(leaf(**facts)))
    error = msgspec.msgpack.Decoder(FromWorker).decode(encode(sent)).failure.unpack()
    assert type(error) is leaf
    assert (error.facts, error.message) == (facts, leaf(**facts).message)


def test_facts_keep_their_types():
    facts = {
        "model": "gpt2",
        "needed_bytes": 2**40,
        "weights_bytes": 1.5,
        "kv_cache_bytes": True,
        "working_bytes": 30.0,
    }
    facts |= {"overhead_bytes": None, "available_bytes": 0, "device": "cpu", "hint": ""}
    sent = LoadFailed(Failure.of(InsufficientMemory(**facts)))
    received = msgspec.msgpack.Decoder(FromWorker).decode(encode(sent)).failure.facts
    assert [(name, type(fact), fact) for name, fact in received.items()] == [
        (name, type(fact), fact) for name, fact in facts.items()
    ]


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", encode(Fork(1)), encode(Loaded(make_facts()))[:-1]])
def test_what_does_not_belong_on_a_channel_is_refused(data):
    with pytest.raises(msgspec.DecodeError):
        msgspec.msgpack.Decoder(ToWorker).decode(data)

"""Decode steps as graphs: all but CUDA itself, which a capture stands in for that computes everything again."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from inferapi.domain.generation import SamplingParams
from inferapi.domain.model import LayerShape
from inferapi.engine.attention import PagedAttention
from inferapi.engine.cuda_graphs import DecodeGraphs, cuda_decode_graphs
from inferapi.engine.kv_cache import BLOCK_TOKENS, KvCache
from inferapi.engine.request import Request
from inferapi.engine.scheduler import Plan, Segment
from inferapi.engine.static_steps import rounded_blocks, static_step, step_numbers

CPU, META = torch.device("cpu"), torch.device("meta")
BLOCKS, WINDOW, VOCABULARY = 80, 100, 61
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
}
MIXED = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 8,
}
FAMILIES = {"llama": ("llama", SHAPE, [None, None]), "gemma3": ("gemma3_text", SHAPE | MIXED, [WINDOW, None])}


class Attention(PagedAttention):
    """Takes steps in the place of plans."""

    def use(self, step) -> None:
        self._steps = {step.write_blocks.device: step}


class Again:
    """What a capture is without CUDA: the function is computed anew at every replay."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        function()

        def replay() -> None:
            self.replays += 1
            function()

        return replay


class Decoder:
    """A tiny model with random weights on a paged cache, and the requests that it decodes."""

    def __init__(self, family: str, capture: Callable[..., Callable[[], None]]) -> None:
        model_type, shape, windows = FAMILIES[family]
        torch.manual_seed(0)
        self.model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **shape)).eval()
        layers = [LayerShape(2, 8, 8, window) for window in windows]
        self.cache = KvCache(layers, BLOCKS, torch.float32, [CPU] * len(layers))
        self.attention = Attention(layers, self.cache)
        AttentionInterface.register("test_cuda_graphs", self.attention)
        self.model.set_attn_implementation("test_cuda_graphs")
        self.eager_passes = 0
        self.graphs = DecodeGraphs(
            self.forward,
            self.attention,
            list(dict.fromkeys(windows)),
            num_blocks=BLOCKS,
            device=CPU,
            capture=capture,
        )

    def forward(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens, position_ids=positions, use_cache=False).logits[0]

    def eager(self, plan: Plan) -> torch.Tensor:
        self.eager_passes += 1
        numbers = [
            (segment.request.tokens[position], position)
            for segment in plan.segments
            for position in range(segment.start, segment.start + segment.length)
        ]
        tokens, positions = torch.tensor(numbers).unbind(1)
        self.attention.begin(plan)
        with torch.inference_mode():
            return self.forward(tokens[None], positions[None])

    def prompt(self, request_id: int, blocks: list[int], length: int) -> Request:
        """A request whose prompt is computed, all but the last token."""
        tokens = [(7 * index + 11 * request_id + 3) % VOCABULARY for index in range(length)]
        request = Request(request_id, tokens, length, SamplingParams(), arrived_s=0.0, blocks=blocks)
        self.eager(Plan((), (Segment(request, 0, length - 1),)))
        self.eager_passes = 0
        return request

    def step(self, *requests: Request) -> torch.Tensor | None:
        plan = decodes(*requests)
        return self.graphs.run(plan, lambda: self.eager(plan))


def decodes(*requests: Request) -> Plan:
    return Plan(tuple(Segment(request, len(request.tokens) - 1, 1) for request in requests), ())


def decoding(blocks: list[int], length: int, token: int = 5) -> Segment:
    """The newest of ``length`` tokens of a request that no model computes."""
    request = Request(0, [0] * (length - 1) + [token], length, SamplingParams(), arrived_s=0.0, blocks=blocks)
    return Segment(request, length - 1, 1)


@pytest.mark.parametrize(
    ("blocks", "rounded"), [(1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 8), (9, 12), (13, 16), (17, 24), (65, 96)]
)
def test_blocks_are_rounded_up_to_powers_of_two_and_halves_between(blocks: int, rounded: int) -> None:
    assert rounded_blocks(blocks) == rounded


@pytest.mark.parametrize(("requests", "rows"), [(1, 1), (2, 2), (3, 4), (9, 16), (33, 64), (64, 64)])
def test_rows_are_rounded_up_to_those_of_a_graph(requests: int, rows: int) -> None:
    size, _ = step_numbers([decoding([row], 3) for row in range(requests)], [None], BLOCKS)

    assert size.rows == rows


def test_rows_of_nobody_write_to_the_scratch_block_and_read_nothing() -> None:
    segments = [decoding([0], 3, 7), decoding([4, 2], BLOCK_TOKENS + 2, 8), decoding([1], 1, 9)]

    size, numbers = step_numbers(segments, [None], BLOCKS)
    tokens, positions, step = static_step(size, torch.from_numpy(numbers), [None])

    assert tokens.tolist() == [7, 8, 9, 0]
    assert positions.tolist() == [2, BLOCK_TOKENS + 1, 0, 0]
    assert step.write_blocks.tolist() == [0, 2, 1, BLOCKS - 1]
    assert step.write_offsets.tolist() == [2, 1, 0, 0]
    assert 3 not in step.decode_view(None).owner.tolist()
    assert len(step.plan.decodes) == 4


def test_a_dense_view_is_read_in_place_and_the_blocks_of_nobody_are_hidden() -> None:
    size, numbers = step_numbers([decoding([4, 2], BLOCK_TOKENS + 2), decoding([0], 10)], [None], BLOCKS)
    view = static_step(size, torch.from_numpy(numbers), [None])[2].decode_view(None)

    assert view.gathered is None
    assert view.owner.tolist() == [1, 2, 0, 2, 0, 2]
    assert (~view.hidden).sum((1, 2, 3)).tolist() == [10, 0, 2, 0, BLOCK_TOKENS, 0]


def test_a_sparse_view_is_gathered_and_filled_up() -> None:
    size, numbers = step_numbers([decoding([70, 60, 50, 40, 30], 4 * BLOCK_TOKENS + 1)], [None], BLOCKS)
    view = static_step(size, torch.from_numpy(numbers), [None])[2].decode_view(None)

    assert view.gathered is not None
    assert view.gathered.tolist() == [70, 60, 50, 40, 30, 70]
    assert view.owner.tolist() == [0, 0, 0, 0, 0, 1]
    assert (~view.hidden).sum((1, 2, 3)).tolist() == [*4 * [BLOCK_TOKENS], 1, 0]


def test_a_window_leaves_out_what_it_does_not_reach() -> None:
    size, numbers = step_numbers([decoding([0, 1, 2], 2 * BLOCK_TOKENS + 10)], [20, None], BLOCKS)
    step = static_step(size, torch.from_numpy(numbers), [20, None])[2]

    assert (~step.decode_view(20).hidden).sum((1, 2, 3)).tolist() == [0, 10, 10]
    assert (~step.decode_view(None).hidden).sum((1, 2, 3)).tolist() == [BLOCK_TOKENS, BLOCK_TOKENS, 10]


def test_a_view_in_place_is_never_larger_than_the_cache() -> None:
    size, _ = step_numbers([decoding([*range(65)], 65 * BLOCK_TOKENS)], [None], BLOCKS)

    assert size.views == ((BLOCKS, False),)


@pytest.mark.parametrize("family", FAMILIES)
def test_graphs_answer_as_the_pass_without_them_while_requests_grow_over_blocks(family: str) -> None:
    capture = Again()
    decoder = Decoder(family, capture)
    requests = [decoder.prompt(0, [0, 3], 60), decoder.prompt(1, [1], 5), decoder.prompt(2, [2, 40, 60], 120)]

    for _ in range(12):
        answer = decoder.step(*requests).clone()
        expected = decoder.eager(decodes(*requests))

        torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)
        for request, row in zip(requests, expected, strict=True):
            request.tokens.append(int(row.argmax()))

    assert capture.captures == decoder.graphs.num_graphs < 4
    assert capture.replays == 12


def test_numbers_are_written_to_where_the_graph_reads_them() -> None:
    capture = Again()
    decoder = Decoder("llama", capture)
    request = decoder.prompt(0, [0], 5)
    inputs = []
    decoder.graphs._forward = lambda tokens, positions: (
        inputs.append((tokens.data_ptr(), tokens.item(), positions.item())) or decoder.forward(tokens, positions)
    )

    for token in (8, 9):
        decoder.step(request)
        request.tokens.append(token)
    decoder.step(request)

    (first, *_), *_, (again, token, position) = inputs
    assert (again, token, position) == (first, 9, 6)
    assert capture.captures == 1


class Host(TorchDispatchMode):
    """Notes what would wait for the device, or read the host's memory, in the middle of a capture."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.waits: list[str] = []

    def __torch_dispatch__(self, func, _, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        self.operations += 1
        tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, torch.Tensor)]
        by_numbers = func is torch.ops.aten.index.Tensor and all(index.dtype == torch.long for index in args[1])
        waits = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)
        if (waits and not by_numbers) or any(tensor.device != META for tensor in tensors):
            self.waits.append(func.name())
        return output


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("blocks", [[0, 1], [60, 61]], ids=["in place", "gathered"])
def test_nothing_that_is_captured_waits_for_the_device_or_reads_the_host(family: str, blocks: list[int]) -> None:
    """On the device without memory, where an operation that must know a number fails."""
    decoder = Decoder(family, Again())
    windows = decoder.graphs._windows_tokens
    decoder.cache.keys, decoder.cache.values = (
        [tensor.to(META) for tensor in tensors] for tensors in (decoder.cache.keys, decoder.cache.values)
    )
    decoder.model.to(META)
    size, numbers = step_numbers([decoding(blocks, BLOCK_TOKENS + 5)], windows, BLOCKS)
    inputs = torch.from_numpy(numbers).to(META)

    host = Host()
    with torch.inference_mode(), host:
        tokens, positions, step = static_step(size, inputs, windows)
        decoder.attention.use(step)
        logits = decoder.forward(tokens[None], positions[None])

    assert (logits.shape, logits.device) == ((1, VOCABULARY), META)
    assert host.operations > 100
    assert host.waits == []


def test_the_first_step_of_a_size_is_computed_without_a_graph_and_the_next_is_not() -> None:
    decoder = Decoder("llama", Again())
    request = decoder.prompt(0, [0], 5)

    passes = []
    for _ in range(3):
        decoder.step(request)
        passes.append(decoder.eager_passes)
        request.tokens.append(1)

    assert passes == [1, 1, 1]


@pytest.mark.parametrize("rows", [0, 65])
def test_more_rows_than_a_graph_has_and_prompts_are_left_to_others(rows: int) -> None:
    decoder = Decoder("llama", Again())
    segments = tuple(decoding([row], 3) for row in range(rows))

    plan = Plan(segments, () if rows else (Segment(decoding([0], 3).request, 0, 3),))

    assert decoder.graphs.run(plan, lambda: pytest.fail("nothing is to be computed")) is None


def test_a_capture_that_fails_leaves_every_step_to_others_and_says_why_once(caplog) -> None:
    def fails(_: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more of it")

    decoder = Decoder("llama", fails)
    request = decoder.prompt(0, [0], 5)

    with caplog.at_level(logging.INFO, "inferapi.engine.cuda_graphs"):
        first = decoder.step(request)
        later = [decoder.step(request), decoder.step(request)]

    torch.testing.assert_close(first, decoder.eager(decodes(request)))
    assert later == [None, None]
    assert [record.message for record in caplog.records] == [
        "decode steps are not replayed as CUDA graphs: operation not permitted when stream is capturing"
    ]


@pytest.mark.parametrize("spoil", [1.5, float("nan")])
def test_a_replay_that_comes_to_something_else_is_never_used(caplog, spoil: float) -> None:
    def spoils(function: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            function()
            decoder.graphs._logits[0, ::2] *= spoil

        return replay

    decoder = Decoder("llama", spoils)
    request = decoder.prompt(0, [0], 5)

    with caplog.at_level(logging.INFO, "inferapi.engine.cuda_graphs"):
        answer = decoder.step(request)

    torch.testing.assert_close(answer, decoder.eager(decodes(request)))
    assert decoder.step(request) is None
    assert "the logits of 1 rows differ by" in caplog.text


def test_a_replay_that_computes_nothing_is_not_taken_for_what_warmed_it_up() -> None:
    def warms_up(function: Callable[[], None]) -> Callable[[], None]:
        function()
        return lambda: None

    decoder = Decoder("llama", warms_up)
    request = decoder.prompt(0, [0], 5)

    decoder.step(request)

    assert decoder.step(request) is None


def test_an_ordinary_pass_without_memory_is_no_failed_capture() -> None:
    decoder = Decoder("llama", Again())
    request = decoder.prompt(0, [0], 5)

    def no_memory() -> torch.Tensor:
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        decoder.graphs.run(decodes(request), no_memory)

    assert decoder.step(request) is not None
    assert decoder.graphs.num_graphs == 1


def test_the_graph_used_longest_ago_goes_when_there_are_too_many(monkeypatch) -> None:
    monkeypatch.setattr("inferapi.engine.cuda_graphs._MOST_GRAPHS", 2)
    capture = Again()
    decoder = Decoder("llama", capture)
    one, two, three = (decoder.prompt(nth, [nth], 5) for nth in range(3))

    for requests in ((one,), (one, two), (one,), (one, two, three), (one,)):  # the graph of two rows goes
        decoder.step(*requests)
    assert (decoder.graphs.num_graphs, capture.captures) == (2, 3)

    decoder.step(one, two)

    assert capture.captures == 4


def test_a_cache_that_is_not_on_one_gpu_has_no_graphs() -> None:
    decoder = Decoder("llama", Again())

    assert cuda_decode_graphs(decoder.forward, decoder.attention, [None], decoder.cache) is None

"""Prompts that begin like earlier ones begin where those left off, and answer as if they had not."""

import time
from queue import SimpleQueue

import pytest
import torch

from inferapi.domain.errors import OutOfMemory
from inferapi.domain.generation import GenerationRequest, Prompt, SamplingParams
from inferapi.engine.kv_cache import KvCache
from inferapi.worker.encoding import PromptThread
from inferapi.worker.messages import Generate

families = pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "gemma3", "gemma2"])
BLOCK = 64


@pytest.fixture
def ask(new_request, drive, answer_of):
    """Asks a loop, whose request it is, alone; the request when it has its answer."""

    def one(loop, prompt, new=20, salt=""):
        request = new_request(prompt, new)
        request.salt = salt
        finish = drive(loop, [request]).finish[request.request_id]
        assert finish.usage.prompt_tokens == len(prompt)
        assert finish.usage.cached_tokens == request.num_cached_tokens
        return request

    return one


@pytest.fixture(scope="module")
def expected(tiny, generate):
    """What transformers' generate answers to a request's prompt."""
    return lambda family, request: generate(
        tiny(family).reference,
        request.tokens[: request.num_prompt_tokens],
        request.sampling.max_new_tokens,
    )


@families
def test_a_turn_reuses_all_full_blocks_of_the_turn_before_and_answers_as_generate_does(
    tiny, ask, expected, prompt_of, answer_of, family: str
) -> None:
    loop = tiny(family).model.loop

    first = ask(loop, prompt_of(150, seed=1), 60)
    second = ask(loop, [*first.tokens, *prompt_of(30, seed=2)], 40)
    third = ask(loop, [*second.tokens, *prompt_of(700, seed=3)], 20)  # of which the rest takes two chunks

    assert first.num_cached_tokens == 0
    assert second.num_cached_tokens == (150 + 60 - 1) // BLOCK * BLOCK
    assert third.num_cached_tokens == (240 + 40 - 1) // BLOCK * BLOCK
    for request in (first, second, third):
        assert answer_of(request) == expected(family, request)


@families
@pytest.mark.parametrize("length", [64, 65, 127, 128, 129, 300])
def test_a_prompt_again_answers_the_same(tiny, ask, expected, prompt_of, answer_of, family: str, length: int) -> None:
    loop = tiny(family).model.loop
    prompt = prompt_of(length, seed=4)

    cold, warm = ask(loop, prompt), ask(loop, prompt)

    assert warm.num_cached_tokens == (length - 1) // BLOCK * BLOCK
    assert answer_of(warm) == answer_of(cold) == expected(family, cold)


def test_another_salt_reuses_nothing(tiny, ask, expected, prompt_of, answer_of) -> None:
    loop = tiny("llama").model.loop
    prompt = prompt_of(300, seed=5)

    requests = [ask(loop, prompt, salt=salt) for salt in ("ann", "bob", "", "ann")]

    assert [request.num_cached_tokens for request in requests] == [0, 0, 0, 256]
    assert [answer_of(request) for request in requests] == 4 * [expected("llama", requests[0])]


@families
def test_two_that_share_a_beginning_run_side_by_side_whoever_leaves_first(
    tiny, ask, expected, new_request, drive, prompt_of, answer_of, family: str
) -> None:
    loop = tiny(family).model.loop
    beginning = prompt_of(200, seed=6)
    ask(loop, beginning, 1)
    short, long, cancelled = (
        new_request([*beginning, *prompt_of(9, seed=seed)], new) for seed, new in ((1, 5), (2, 90), (3, 90))
    )

    drive(loop, [short, long], steps=3)
    drive(loop, [cancelled], steps=4)
    loop.cancel(cancelled.request_id)
    again = ask(loop, [*beginning, *prompt_of(9, seed=3)], 30)

    assert [request.num_cached_tokens for request in (short, long, cancelled, again)] == 4 * [192]
    for request in (short, long, again):
        assert answer_of(request) == expected(family, request)
    assert loop.load.kv_cache_usage_ratio == 0.0


def test_what_a_running_request_has_computed_serves_another(
    tiny, expected, new_request, drive, prompt_of, answer_of
) -> None:
    loop = tiny("llama").model.loop
    first, second = new_request(prompt_of(200, seed=7), 100), new_request(prompt_of(200, seed=7), 30)

    drive(loop, [first], steps=70)
    drive(loop, [second])

    assert second.num_cached_tokens == 192
    assert [answer_of(request) for request in (first, second)] == [expected("llama", r) for r in (first, second)]


def test_a_cancelled_request_leaves_what_it_had_computed(
    tiny, ask, expected, new_request, drive, prompt_of, answer_of
) -> None:
    loop = tiny("llama").model.loop
    prompt = prompt_of(900, seed=8)
    cancelled = new_request(prompt, 100)
    drive(loop, [cancelled], steps=1)  # 512 of its tokens

    loop.cancel(cancelled.request_id)
    request = ask(loop, prompt)

    assert request.num_cached_tokens == 512
    assert answer_of(request) == expected("llama", request)


@pytest.fixture
def small(load, write_model):
    """Eight blocks."""
    return load(write_model("llama"), kv_cache_tokens=8 * BLOCK).loop


def test_where_room_is_scarce_the_ends_of_the_oldest_make_way(small, ask, expected, prompt_of, answer_of) -> None:
    ann, bob, eve = (ask(small, prompt_of(200, seed=seed)) for seed in (1, 2, 3))  # four blocks, three of them full

    again = [ask(small, prompt_of(200, seed=seed)) for seed in (3, 1, 2)]

    assert [request.num_cached_tokens for request in again] == [192, 64, 64]
    for request in (ann, bob, eve, *again):
        assert answer_of(request) == expected("llama", request)


def test_conversations_that_take_turns_in_little_room_answer_as_generate_does(
    small, expected, new_request, drive, prompt_of, answer_of
) -> None:
    said = {seed: prompt_of(60, seed=seed) for seed in range(4)}
    cached = []
    for turn in range(3):
        requests = [new_request(said[seed], 25) for seed in said]
        drive(small, requests)
        for seed, request in zip(said, requests, strict=True):
            assert answer_of(request) == expected("llama", request)
            said[seed] = [*request.tokens, *prompt_of(20, seed=10 * seed + turn)]
        cached += [request.num_cached_tokens for request in requests]

    assert cached[:4] == [0, 0, 0, 0]
    assert max(cached) >= BLOCK
    assert small.load.kv_cache_usage_ratio == 0.0


def test_a_prompt_as_long_as_the_cache_finds_room_among_kept_blocks(small, ask, expected, prompt_of, answer_of) -> None:
    ask(small, prompt_of(200, seed=1))

    whole = ask(small, prompt_of(492, seed=2), 20)
    again = ask(small, prompt_of(492, seed=2), 20)

    assert (whole.num_cached_tokens, again.num_cached_tokens) == (0, 448)
    assert answer_of(whole) == answer_of(again) == expected("llama", whole)


@pytest.mark.parametrize("broken", ["before", "midway", "after"])
def test_after_a_step_without_memory_nothing_wrong_is_reused(
    small, ask, expected, new_request, drive, prompt_of, answer_of, monkeypatch, broken: str
) -> None:
    """The failing step moves kept blocks; it fails before, between or after the copies of its layers."""
    prompts = [prompt_of(130, seed=seed) for seed in (1, 2, 3)]
    for prompt in prompts:
        ask(small, prompt)
    running = new_request(prompt_of(20, seed=4), 60)
    drive(small, [running], steps=3)
    move, index_copy = KvCache.move, torch.Tensor.index_copy_
    copies = 0

    def fail_to_move(cache: KvCache, moves) -> None:
        if broken == "after":
            move(cache, moves)
        raise MemoryError

    def fail_to_copy(tensor, *arguments):
        nonlocal copies
        copies += 1
        if copies == 3:
            raise MemoryError
        return index_copy(tensor, *arguments)

    with monkeypatch.context() as patch:
        if broken == "midway":
            patch.setattr(torch.Tensor, "index_copy_", fail_to_copy)
        else:
            patch.setattr(KvCache, "move", fail_to_move)
        with pytest.raises(OutOfMemory):
            drive(small, [new_request(prompts[0], 20)], steps=1)
    again = [ask(small, prompt) for prompt in prompts]

    assert [request.num_cached_tokens for request in again] == [0, 0, 0]
    assert [answer_of(request) for request in again] == [expected("llama", request) for request in again]
    assert answer_of(running) == expected("llama", running)
    assert ask(small, prompts[2]).num_cached_tokens == 128


def test_the_repetition_penalty_sees_tokens_that_were_not_computed_again(tiny, new_request, drive, prompt_of) -> None:
    loop = tiny("llama").model.loop
    cold, warm = (new_request(prompt_of(200, seed=9), 20, repetition_penalty=1.5) for _ in range(2))

    drive(loop, [cold])
    drive(loop, [warm])

    assert warm.num_cached_tokens == 192
    assert warm.tokens == cold.tokens


def test_the_salt_of_a_client_s_request_comes_with_its_tokens(tiny) -> None:
    results: SimpleQueue = SimpleQueue()
    model = tiny("llama").model
    thread = PromptThread(model.encoder, model.constrainer, deliver=results.put, on_end=lambda: None)
    now_s = time.monotonic()
    request = GenerationRequest(Prompt(text="Hello"), SamplingParams(), now_s, now_s + 60, salt="ann")

    thread.start()
    thread.put(Generate(1, request))

    assert results.get(timeout=30).salt == "ann"

"""The life of requests on a real engine: parameters, cancellation, memory, text."""

import pytest

from inferapi.domain.generation import FinishReason

MIXED = (
    {"temperature": 1.0},
    {"temperature": 0.8, "top_k": 20},
    {"temperature": 1.5, "top_p": 0.9, "repetition_penalty": 1.2},
    {"temperature": 1.2, "min_p": 0.05},
    {"temperature": 0.0, "repetition_penalty": 1.3},
)


@pytest.fixture
def llama(tiny):
    return tiny("llama").model


def test_cancelling_gives_slot_and_memory_back_at_once(llama, new_request, drive, prompt_of) -> None:
    running = [new_request(prompt_of(length), 100) for length in (500, 20, 90)]
    drive(llama.loop, running, steps=5)
    busy = llama.loop.load

    for request in running:
        llama.loop.cancel(request.request_id)

    assert busy.running == 3
    # 64 blocks: ceil(599 / 64) + ceil(119 / 64) + ceil(189 / 64) are promised
    assert busy.kv_cache_usage_ratio == (10 + 2 + 3) / 64
    assert (llama.loop.load.running, llama.loop.load.kv_cache_usage_ratio) == (0, 0.0)
    assert all(request.slot is None and request.blocks == [] for request in running)
    assert drive(llama.loop).pieces == {}


def test_a_request_that_does_not_fit_waits_and_then_runs(
    load, write_model, tiny, new_request, drive, generate, prompt_of, answer_of
) -> None:
    loop = load(write_model("llama"), kv_cache_tokens=256).loop
    first, second, third = (new_request(prompt_of(length), new) for length, new in ((100, 20), (150, 20), (5, 5)))
    drive(loop, [first, second, third], steps=4)
    busy = loop.load

    answers = drive(loop)

    assert (busy.running, busy.waiting, busy.kv_cache_usage_ratio) == (1, 2, 0.5)
    assert {request.request_id for request in (first, second, third)} == answers.finish.keys()
    for request, length in ((first, 100), (second, 150), (third, 5)):
        expected = generate(tiny("llama").reference, prompt_of(length), request.sampling.max_new_tokens)
        assert answer_of(request) == expected
    assert loop.load.kv_cache_usage_ratio == 0.0


@pytest.mark.parametrize("seed", [3, 4])
def test_a_seed_repeats_its_answer_alone_and_in_a_batch(
    llama, new_request, drive, prompt_of, answer_of, seed: int
) -> None:
    def requests() -> list:
        return [new_request(prompt_of(10 + n), 15, seed=seed, **sampling) for n, sampling in enumerate(MIXED)]

    alone, together = requests(), requests()
    for request in alone:
        drive(llama.loop, [request])
    drive(llama.loop, together[:2], steps=2)
    drive(llama.loop, together[2:])

    assert [answer_of(request) for request in together] == [answer_of(request) for request in alone]


def test_without_a_seed_answers_differ(llama, new_request, drive, prompt_of, answer_of) -> None:
    requests = [new_request(prompt_of(10), 20, temperature=2.0) for _ in range(3)]

    drive(llama.loop, requests)

    assert len({tuple(answer_of(request)) for request in requests}) == 3


def test_a_stop_string_ends_the_answer_before_it(llama, new_request, drive, prompt_of) -> None:
    whole = drive(llama.loop, [request := new_request(prompt_of(33), 40)]).text(request)
    middle = len(whole) // 2
    stop = whole[middle : middle + 3]
    request = new_request(prompt_of(33), 40, stop=("never said", stop))

    answers = drive(llama.loop, [request])

    assert answers.text(request) == whole[: whole.index(stop)]
    assert answers.finish[request.request_id].reason is FinishReason.STOP
    assert request.num_completion_tokens < 40


def test_the_end_token_ends_an_answer_unless_it_is_ignored_or_comes_too_early(
    tiny, load, write_model, new_request, drive, generate, prompt_of, answer_of
) -> None:
    answer = generate(tiny("llama").reference, prompt_of(33), 12)
    end = answer[1]
    assert answer[0] != end

    def make_it_the_end(model) -> None:
        model.generation_config.eos_token_id = [end]

    loop = load(write_model("llama", make_it_the_end)).loop
    ended = new_request(prompt_of(33), 12, ignore_eos=False)
    ignored = new_request(prompt_of(33), 12, ignore_eos=True)
    early = new_request(prompt_of(33), 12, ignore_eos=False, min_new_tokens=12)

    answers = drive(loop, [ended, ignored, early])

    assert answer_of(ended) == answer[:2]
    assert answers.finish[ended.request_id].reason is FinishReason.STOP
    assert answer_of(ignored) == answer
    assert len(answer_of(early)) == 12
    assert end not in answer_of(early)
    assert {answers.finish[r.request_id].reason for r in (ignored, early)} == {FinishReason.LENGTH}


def test_usage_counts_prompt_and_answer(llama, new_request, drive, prompt_of) -> None:
    request = new_request(prompt_of(17), 9)

    finish = drive(llama.loop, [request]).finish[request.request_id]

    assert (finish.usage.prompt_tokens, finish.usage.completion_tokens) == (17, 9)
    assert finish.timings.total_s >= finish.timings.time_to_first_token_s >= finish.timings.queue_s


def test_random_bytes_stream_as_the_whole_would_be_decoded(llama, new_request, drive, answer_of) -> None:
    requests = [new_request(range(10 + n), 60, temperature=1.5, seed=n) for n in range(4)]

    answers = drive(llama.loop, requests)

    for request in requests:
        whole = llama.encoder._tokenizer.decode(answer_of(request), skip_special_tokens=True)
        assert answers.text(request) == whole

import pytest

from inferapi.domain.generation import FinishReason, SamplingParams, Timings, Usage
from inferapi.engine.request import Phase, Request


def test_a_request_goes_from_waiting_through_prefill_and_decode_to_finished(new_request) -> None:
    request = new_request(prompt=[5, 6, 7], max_new_tokens=2)
    phases = [request.phase]

    request.slot = 0
    phases.append(request.phase)
    request.num_computed_tokens = 2  # a chunk of the prompt, its last token still to come
    phases.append(request.phase)
    request.num_computed_tokens = 3
    request.tokens.append(8)
    phases.append(request.phase)
    request.finish_reason = FinishReason.STOP
    phases.append(request.phase)

    assert phases == [Phase.WAITING, Phase.PREFILL, Phase.PREFILL, Phase.DECODE, Phase.FINISHED]


def test_a_prompt_of_one_token_is_a_prefill(new_request) -> None:
    request = new_request(prompt=[5])
    request.slot = 0

    assert (request.phase, request.num_uncomputed_tokens) == (Phase.PREFILL, 1)


def test_tokens_are_counted_by_where_they_came_from(new_request) -> None:
    request = new_request(prompt=[5, 6, 7], max_new_tokens=9)
    request.dropped_turns, request.num_cached_tokens = 2, 1
    request.tokens += [8, 9]

    assert request.num_completion_tokens == 2
    assert request.max_tokens == 12
    assert request.usage() == Usage(prompt_tokens=3, completion_tokens=2, dropped_turns=2, cached_tokens=1)
    assert request.usage().total_tokens == 5


def test_digests_follow_from_the_salt_and_every_token_before(new_request) -> None:
    one, same, other_salt, other_end = (new_request(prompt=range(9)) for _ in range(4))
    other_salt.salt = "ann"
    other_end.tokens[7] = 99

    digests = [list(request.digests(4, 0, 2)) for request in (one, same, other_salt, other_end)]

    assert digests[1] == digests[0]
    assert digests[2][0] != digests[0][0]
    assert digests[3][0] == digests[0][0]
    assert digests[3][1] != digests[0][1]
    assert list(one.digests(4, 1, 2)) == digests[0][1:]


def test_timings_count_from_arrival() -> None:
    request = Request(0, [5, 6, 7, 8, 9, 9], 3, SamplingParams(), arrived_s=100.0)
    request.admitted_s, request.first_token_s = 101.0, 103.0

    assert request.timings(107.0) == Timings(
        queue_s=1.0,
        time_to_first_token_s=3.0,
        inter_token_latency_s=2.0,  # the first of the three tokens has no token before it
        total_s=7.0,
    )


def test_timings_of_a_request_that_never_ran_are_its_wait() -> None:
    request = Request(0, [5], 1, SamplingParams(), arrived_s=100.0)

    assert request.timings(104.0) == Timings(4.0, 4.0, 0.0, 4.0)


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_requests_of_one_seed_draw_the_same_numbers(new_request, seed: int) -> None:
    first, second, other = new_request(seed=seed), new_request(seed=seed), new_request(seed=seed + 1)
    draws = [first.random.random() for _ in range(5)]

    assert draws == [second.random.random() for _ in range(5)]
    assert draws != [other.random.random() for _ in range(5)]

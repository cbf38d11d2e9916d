from collections.abc import Callable

import pytest

from inferapi.domain.errors import QueueFull
from inferapi.engine.block_pool import BlockPool
from inferapi.engine.request import Request
from inferapi.engine.scheduler import Plan, Scheduler

BLOCK_TOKENS = 4


def scheduler_of(
    *,
    slots: int = 2,
    waiting: int = 8,
    chunk: int = 6,
    idle_chunk: int = 16,
    blocks: int | None = 64,
    costly_context: float | None = None,
    unfinished: int | None = None,
) -> Scheduler:
    return Scheduler(
        max_slots=slots,
        max_waiting=waiting,
        step_tokens=chunk,
        idle_step_tokens=idle_chunk,
        pool=BlockPool(blocks, BLOCK_TOKENS) if blocks else None,
        chunk_tokens=unfinished,
        costly_context_tokens=costly_context,
    )


@pytest.fixture
def prompt(new_request) -> Callable[..., Request]:
    return lambda request_id, length, new=8: new_request(request_id, [0] * length, max_new_tokens=new)


def compute(plan: Plan | None) -> None:
    """What the step loop does with a plan, short of finishing anybody."""
    assert plan is not None
    for segment in plan.segments:
        samples = segment.samples
        segment.request.num_computed_tokens += segment.length
        if samples:
            segment.request.tokens.append(0)


def spans(plan: Plan | None) -> dict[str, list[tuple[int, int, int]]]:
    assert plan is not None
    return {
        name: [(s.request.request_id, s.start, s.length) for s in getattr(plan, name)]
        for name in ("decodes", "prefills")
    }


def test_nothing_to_do_is_no_plan() -> None:
    scheduler = scheduler_of()

    assert scheduler.plan(0.0) is None
    assert scheduler.is_idle


def test_requests_are_admitted_in_order_of_arrival_while_slots_last(prompt) -> None:
    scheduler = scheduler_of(slots=2)
    requests = [prompt(n, 3) for n in range(4)]
    for request in requests:
        scheduler.submit(request)

    scheduler.plan(7.0)

    assert scheduler.running == (requests[0], requests[1])
    assert scheduler.waiting == 2
    assert [request.admitted_s for request in requests] == [7.0, 7.0, None, None]
    assert {request.slot for request in requests[:2]} == {0, 1}


def test_with_nobody_decoding_a_prompt_is_computed_in_large_chunks(prompt) -> None:
    scheduler = scheduler_of(chunk=6, idle_chunk=16)
    scheduler.submit(prompt(0, 20))

    first = scheduler.plan(0.0)
    compute(first)
    second = scheduler.plan(0.0)

    assert spans(first) == {"decodes": [], "prefills": [(0, 0, 16)]}
    assert [segment.samples for segment in first.segments] == [False]
    assert spans(second) == {"decodes": [], "prefills": [(0, 16, 4)]}
    compute(second)
    assert spans(scheduler.plan(0.0)) == {"decodes": [(0, 20, 1)], "prefills": []}


def test_a_prompt_beside_decodes_is_computed_in_small_chunks_and_delays_nobody(prompt) -> None:
    scheduler = scheduler_of(chunk=7, idle_chunk=16)
    scheduler.submit(prompt(0, 3))
    compute(scheduler.plan(0.0))
    scheduler.submit(prompt(1, 14))

    plans = []
    for _ in range(4):
        plan = scheduler.plan(0.0)
        plans.append(spans(plan))
        compute(plan)

    assert plans == [
        {"decodes": [(0, 3, 1)], "prefills": [(1, 0, 6)]},
        {"decodes": [(0, 4, 1)], "prefills": [(1, 6, 6)]},
        {"decodes": [(0, 5, 1)], "prefills": [(1, 12, 2)]},
        {"decodes": [(0, 6, 1), (1, 14, 1)], "prefills": []},
    ]


def test_however_many_decode_a_prompt_gets_a_quarter_of_a_step(prompt) -> None:
    scheduler = scheduler_of(slots=9, chunk=8, idle_chunk=64)
    for n in range(8):
        scheduler.submit(prompt(n, 3))
    compute(scheduler.plan(0.0))
    scheduler.submit(prompt(8, 14))

    assert spans(scheduler.plan(0.0))["prefills"] == [(8, 0, 2)]


def test_prompts_share_the_budget_of_a_step_the_shortest_first(prompt) -> None:
    scheduler = scheduler_of(slots=4, idle_chunk=16)
    for n, length in enumerate((5, 9, 7, 3)):
        scheduler.submit(prompt(n, length))

    assert spans(scheduler.plan(0.0))["prefills"] == [(3, 0, 3), (0, 0, 5), (2, 0, 7), (1, 0, 1)]


def test_a_short_prompt_is_computed_at_once_beside_a_long_one(prompt) -> None:
    scheduler = scheduler_of(slots=2, idle_chunk=16, blocks=512)
    scheduler.submit(prompt(0, 1000))
    compute(scheduler.plan(0.0))
    scheduler.submit(prompt(1, 12))

    assert spans(scheduler.plan(0.0))["prefills"] == [(1, 0, 12), (0, 16, 4)]


def test_short_prompts_without_end_leave_a_quarter_to_the_oldest(prompt) -> None:
    scheduler = scheduler_of(slots=3, idle_chunk=16, chunk=16, blocks=512)
    scheduler.submit(prompt(0, 1000))
    scheduler.submit(prompt(1, 40))
    scheduler.submit(prompt(2, 40))

    plan = scheduler.plan(0.0)
    assert spans(plan)["prefills"] == [(1, 0, 12), (0, 0, 4)]
    compute(plan)
    assert spans(scheduler.plan(0.0))["prefills"] == [(1, 12, 12), (0, 4, 4)]


def test_chunks_are_shorter_the_more_tokens_they_look_back_at(prompt) -> None:
    scheduler = scheduler_of(idle_chunk=16, costly_context=32)
    scheduler.submit(prompt(0, 80))

    lengths = []
    while not lengths or lengths[-1][1] < 80:
        plan = scheduler.plan(0.0)
        compute(plan)
        [(_, start, length)] = spans(plan)["prefills"]
        lengths.append((length, start + length))

    assert lengths[0][0] == 13
    assert lengths[-2][0] == 4
    for length, end in lengths[:-1]:  # each is what the budget pays for, to a token
        cost, one_more = (n * (1 + (end - length + n / 2) / 32) for n in (length, length + 1))
        assert cost <= 16 < one_more


def test_a_long_prompt_that_is_costly_still_gets_on_beside_decodes(prompt) -> None:
    scheduler = scheduler_of(slots=3, chunk=4, idle_chunk=64, costly_context=1)
    first, long = prompt(0, 2, new=40), prompt(1, 60)
    scheduler.submit(first)
    compute(scheduler.plan(0.0))
    scheduler.submit(long)

    for _ in range(8):
        compute(scheduler.plan(0.0))

    assert long.num_computed_tokens == 8


def test_prompts_that_end_in_a_step_fill_it_and_others_get_less_of_it(prompt) -> None:
    scheduler = scheduler_of(slots=8, idle_chunk=16, unfinished=8)
    for request_id, length in enumerate((5, 5, 5, 40)):
        scheduler.submit(prompt(request_id, length))

    first = scheduler.plan(0.0)
    compute(first)

    assert spans(first)["prefills"] == [(0, 0, 5), (1, 0, 5), (2, 0, 5)]


def test_a_prompt_that_does_not_end_in_a_step_is_cut_shorter(prompt) -> None:
    scheduler = scheduler_of(idle_chunk=16, unfinished=8)
    scheduler.submit(prompt(0, 20))

    plans = []
    for _ in range(2):
        plans.append(scheduler.plan(0.0))
        compute(plans[-1])

    assert [spans(plan)["prefills"] for plan in plans] == [[(0, 0, 8)], [(0, 8, 12)]]


def test_the_oldest_prompt_keeps_its_quarter_of_a_chunk_beside_prompts_that_end(prompt) -> None:
    scheduler = scheduler_of(slots=8, idle_chunk=16, unfinished=8)
    for request_id, length in enumerate((40, 5, 5, 5)):
        scheduler.submit(prompt(request_id, length))

    first = scheduler.plan(0.0)

    assert spans(first)["prefills"] == [(1, 0, 5), (2, 0, 5), (0, 0, 2)]


def test_only_the_last_chunk_of_a_prompt_samples(prompt) -> None:
    scheduler = scheduler_of(idle_chunk=4)
    scheduler.submit(prompt(0, 8))

    first = scheduler.plan(0.0)
    assert [segment.samples for segment in first.segments] == [False]
    compute(first)
    assert [segment.samples for segment in scheduler.plan(0.0).segments] == [True]


def test_a_request_takes_blocks_as_it_grows_and_reserves_all_it_can_need(prompt) -> None:
    scheduler = scheduler_of(blocks=8, idle_chunk=16)
    request = prompt(0, 6, new=8)  # 13 places: the last token is never fed back
    scheduler.submit(request)

    compute(scheduler.plan(0.0))

    assert request.blocks == [0, 1]
    assert request.reserved_blocks == 4
    assert scheduler.kv_cache_usage_ratio == 0.5
    for expected in (2, 2, 3, 3, 3, 3, 4):
        compute(scheduler.plan(0.0))
        assert len(request.blocks) == expected
    assert request.num_completion_tokens == 8


def test_a_request_that_does_not_fit_waits_and_is_not_overtaken(prompt) -> None:
    scheduler = scheduler_of(slots=4, blocks=8)
    big, bigger, small = prompt(0, 17, new=8), prompt(1, 25, new=8), prompt(2, 1, new=1)
    for request in (big, bigger, small):
        scheduler.submit(request)

    scheduler.plan(0.0)
    assert scheduler.running == (big,)
    assert scheduler.waiting == 2

    scheduler.remove(big)
    scheduler.plan(0.0)
    assert scheduler.running == (bigger,)
    assert scheduler.kv_cache_usage_ratio == 1.0

    scheduler.remove(bigger)
    scheduler.plan(0.0)
    assert scheduler.running == (small,)


def test_a_full_queue_refuses_and_says_how_many_wait(prompt) -> None:
    scheduler = scheduler_of(slots=1, waiting=2)
    for n in range(3):  # one of them will not have to wait
        scheduler.submit(prompt(n, 3))

    with pytest.raises(QueueFull) as refusal:
        scheduler.submit(prompt(3, 3))
    assert refusal.value.facts == {"waiting": 3}

    scheduler.plan(0.0)
    assert scheduler.waiting == 2
    with pytest.raises(QueueFull):
        scheduler.submit(prompt(4, 3))


def test_a_queue_of_no_places_still_runs_who_finds_a_slot(prompt) -> None:
    scheduler = scheduler_of(slots=2, waiting=0)
    scheduler.submit(prompt(0, 3))
    scheduler.submit(prompt(1, 3))

    with pytest.raises(QueueFull):
        scheduler.submit(prompt(2, 3))
    assert scheduler.plan(0.0) is not None
    assert len(scheduler.running) == 2


def test_cancelling_who_waits_leaves_the_others_in_order(prompt) -> None:
    scheduler = scheduler_of(slots=1)
    first, second, third = (prompt(n, 3) for n in range(3))
    for request in (first, second, third):
        scheduler.submit(request)
    scheduler.plan(0.0)

    scheduler.remove(second)
    scheduler.remove(first)
    scheduler.plan(0.0)

    assert scheduler.running == (third,)
    assert scheduler.waiting == 0


def test_cancelling_who_runs_gives_slot_and_blocks_back_at_once(prompt) -> None:
    scheduler = scheduler_of(slots=1, blocks=4)
    request, successor = prompt(0, 8, new=8), prompt(1, 8, new=8)
    scheduler.submit(request)
    compute(scheduler.plan(0.0))
    slot = request.slot

    scheduler.remove(request)

    assert scheduler.is_idle
    assert (request.slot, request.blocks, request.reserved_blocks) == (None, [], 0)
    assert scheduler.kv_cache_usage_ratio == 0.0
    scheduler.submit(successor)
    scheduler.plan(0.0)
    assert (successor.slot, successor.blocks) == (slot, [0, 1])


def test_without_a_pool_only_slots_limit(prompt) -> None:
    scheduler = scheduler_of(slots=1, blocks=None, idle_chunk=1000)
    scheduler.submit(prompt(0, 900, new=10_000))

    assert spans(scheduler.plan(0.0))["prefills"] == [(0, 0, 900)]
    assert scheduler.kv_cache_usage_ratio == 0.0
    scheduler.remove(scheduler.running[0])
    assert scheduler.is_idle

import math

import pytest
import torch

from inferapi.engine.chances import Chances, chances_of

IMPOSSIBLE = float("-inf")


def random_logits(rows: int, vocabulary: int = 700) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(5)) * 3


def test_log_probabilities_are_those_of_the_softmax() -> None:
    logits = random_logits(3)
    expected = logits.double().log_softmax(-1)

    found = chances_of(logits, [7, 8, 9], [0, 1, 20])

    assert [one.logprob for one in found] == pytest.approx(expected[[0, 1, 2], [7, 8, 9]].tolist(), abs=1e-5)
    assert [len(one.likeliest) for one in found] == [0, 1, 20]
    values, ids = expected[2].topk(20)
    assert [token for token, _ in found[2].likeliest] == ids.tolist()
    assert [logprob for _, logprob in found[2].likeliest] == pytest.approx(values.tolist(), abs=1e-5)


def test_equally_likely_tokens_come_by_their_id() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 3.0, 2.0, 3.0, 0.0]])

    (found,) = chances_of(logits, [1], [5])

    assert [token for token, _ in found.likeliest] == [1, 3, 5, 2, 4]


def test_what_cannot_be_is_not_among_the_likeliest() -> None:
    logits = torch.full((1, 50), IMPOSSIBLE)
    logits[0, [4, 30]] = torch.tensor([0.0, 0.0])

    (found,) = chances_of(logits, [30], [20])

    assert found == Chances(pytest.approx(-math.log(2)), ((4, pytest.approx(-math.log(2))), (30, found.logprob)))


@pytest.mark.parametrize("broken", [float("nan"), IMPOSSIBLE])
def test_broken_logits_are_told_as_numbers_all_the_same(broken: float) -> None:
    (found,) = chances_of(torch.full((1, 50), broken), [3], [5])

    assert found == Chances(-9999.0)


def test_a_vocabulary_may_be_smaller_than_what_is_asked_for() -> None:
    (found,) = chances_of(torch.zeros(1, 3), [0], [20])

    assert [token for token, _ in found.likeliest] == [0, 1, 2]


def test_a_row_is_told_the_same_alone_and_beside_others() -> None:
    logits = random_logits(6).round()  # many equals
    numbers = [20, 1, 5, 0, 20, 3]
    tokens = logits.argmax(-1).tolist()

    together = chances_of(logits, tokens, numbers)
    alone = [chances_of(logits[[row]], [tokens[row]], [numbers[row]])[0] for row in range(6)]

    assert together == alone


def test_of_many_equals_the_first_are_told_whoever_else_asks_for_more() -> None:
    logits = torch.zeros(2, 700)
    logits[0, 650] = 1.0

    found = chances_of(logits, [650, 0], [3, 20])

    assert [token for token, _ in found[0].likeliest] == [650, 0, 1]
    assert [token for token, _ in found[1].likeliest] == list(range(20))

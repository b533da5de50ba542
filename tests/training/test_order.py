"""Which rows a step has, who computes them, and at what rate they are learned."""

import pytest

from training.errors import ConfigError
from training.order import Order, rate_at, shares


def epoch(order: Order[int], number: int) -> list[int]:
    steps = order.steps_in_epoch
    return [row for step in range(number * steps, (number + 1) * steps) for row in order.step(step)]


def test_an_epoch_has_every_row_once_and_each_epoch_another_order() -> None:
    order = Order(list(range(23)), rows=5, drop_last=False, seed=3)
    assert order.steps_in_epoch == 5
    assert sorted(epoch(order, 0)) == sorted(epoch(order, 1)) == list(range(23))
    assert epoch(order, 0) != epoch(order, 1)
    assert len(order.step(4)) == 3


def test_any_step_can_be_found_again_and_follows_from_the_seed() -> None:
    order = Order(list(range(23)), rows=5, drop_last=False, seed=3)
    assert order.step(7) == Order(list(range(23)), rows=5, drop_last=False, seed=3).step(7)
    assert order.step(7) != Order(list(range(23)), rows=5, drop_last=False, seed=4).step(7)


def test_the_last_step_may_be_left_out_but_not_all() -> None:
    order = Order(list(range(23)), rows=5, drop_last=True, seed=3)
    assert order.steps_in_epoch == 4
    assert len(set(epoch(order, 0))) == 20
    with pytest.raises(ConfigError, match="--drop-last leaves no step of 24 out of 23 rows: lower --batch-size"):
        Order(list(range(23)), rows=24, drop_last=True, seed=3)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_rows_of_a_step_are_dealt_out_once(count: int) -> None:
    rows = list(range(11))
    dealt = [batch for index in range(count) for batch in shares(rows, 2, index, count)]
    assert sorted(row for batch in dealt for row in batch) == rows
    assert max(map(len, dealt)) == 2
    assert shares([1], 2, index=1, count=2) == []


def test_the_rate_rises_over_the_warm_up_and_falls_to_the_end() -> None:
    linear = [rate_at(step, total=10, warmup=4, schedule="linear") for step in range(10)]
    assert linear[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]
    assert linear[5:] == pytest.approx([5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    cosine = [rate_at(step, total=10, warmup=0, schedule="cosine") for step in range(10)]
    assert cosine[0] == 1
    assert cosine[5] == pytest.approx(0.5)
    assert cosine == sorted(cosine, reverse=True)
    assert {rate_at(step, total=10, warmup=0, schedule="constant") for step in range(10)} == {1.0}

"""The knapsack against brute force."""

import itertools
import time

import numpy as np
import pytest

from onnxdfq.budget.search import least_loss, pareto


def brute_force(groups: list[list[tuple[float, float]]], limit: float) -> float | None:
    totals = [
        (sum(cost for cost, _ in choice), sum(loss for _, loss in choice)) for choice in itertools.product(*groups)
    ]
    fitting = [loss for cost, loss in totals if cost <= limit]
    return min(fitting) if fitting else None


@pytest.mark.parametrize("seed", range(40))
def test_it_finds_the_least_loss(seed: int) -> None:
    """Losses need not fall with the cost, costs may be equal, and the limit may be too small."""
    random = np.random.default_rng(seed)
    groups = [
        [(float(random.integers(1, 12)), float(random.integers(0, 20))) for _ in range(random.integers(1, 5))]
        for _ in range(random.integers(1, 7))
    ]
    for limit in random.integers(1, 50, 8):
        found, wanted = least_loss(groups, float(limit)), brute_force(groups, float(limit))
        assert (found is None) == (wanted is None)
        if found is not None:
            picked = [group[index] for group, index in zip(groups, found, strict=True)]
            assert sum(cost for cost, _ in picked) <= limit
            assert sum(loss for _, loss in picked) == wanted


def test_greedy_would_miss_it() -> None:
    """The best gain per cost is taken first by a greedy search, and then the large option does not fit any more."""
    groups = [[(0.0, 10.0), (1.0, 7.0)], [(0.0, 10.0), (4.0, 2.0)]]
    assert least_loss(groups, 4.0) == [0, 1]


def test_options_that_are_not_worth_their_cost() -> None:
    assert pareto([(8.0, 1.0), (2.0, 5.0), (4.0, 5.0), (4.0, 3.0), (6.0, 4.0)]) == [1, 3, 0]


def test_three_hundred_layers_take_no_time() -> None:
    random = np.random.default_rng(0)
    sizes, gains = random.integers(500, 3_000_000, 300), random.lognormal(0, 2, 300)
    groups = [
        [(float(size * bits), float(gain * 4.0**-bits)) for bits in range(2, 9)]
        for size, gain in zip(sizes, gains, strict=True)
    ]
    limit = float(sizes.sum() * 4)
    started = time.process_time()
    found = least_loss(groups, limit)
    assert time.process_time() - started < 5
    assert found is not None
    costs = [group[index][0] for group, index in zip(groups, found, strict=True)]
    assert 0.999 * limit < sum(costs) <= limit

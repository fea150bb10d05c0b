"""Budgets: against all choices of a small case, with costs that multiply."""

from itertools import pairwise, product

import numpy as np
import pytest

from onnxdfq.pruning.allocation import allocate, greatest
from onnxdfq.pruning.harms import Option

RATIOS = (0.0, 0.25, 0.5, 0.75)


def options(seed: int, groups: int) -> list[list[Option]]:
    random = np.random.default_rng(seed)
    return [
        [Option(ratio=ratio, removed=int(8 * ratio), harm=harm) for ratio, harm in zip(RATIOS, harms, strict=True)]
        for harms in np.sort(random.exponential(size=(groups, len(RATIOS))), axis=1) * (np.arange(len(RATIOS)) > 0)
    ]


def cost(ratios: tuple[float, ...]) -> float:
    """As of a chain of layers: what each reads times what it makes."""
    widths = [3.0, *(64 * (1 - ratio) for ratio in ratios), 10.0]
    return sum(one * other for one, other in pairwise(widths))


def harm(choices: list[list[Option]], ratios: tuple[float, ...]) -> float:
    return sum(each[RATIOS.index(ratio)].harm for each, ratio in zip(choices, ratios, strict=True))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_near_the_best_of_all_choices(seed: int, share: float) -> None:
    choices = options(seed, 4)
    limit = share * cost((0.0,) * 4)
    found = allocate(choices, cost, limit)
    assert found is not None and cost(found) <= limit
    best = min(harm(choices, ratios) for ratios in product(RATIOS, repeat=4) if cost(ratios) <= limit)
    assert harm(choices, found) <= 1.25 * best


def test_what_cannot_be_met() -> None:
    choices = options(0, 3)
    least = cost(greatest(choices))
    assert allocate(choices, cost, least) == (0.75, 0.75, 0.75)
    assert allocate(choices, cost, least - 1) is None


def test_costs_that_only_the_whole_tells() -> None:
    measured: list[tuple[float, ...]] = []

    def latency(ratios: tuple[float, ...]) -> float:
        measured.append(ratios)
        return cost(ratios) ** 0.5

    choices = options(1, 4)
    found = allocate(choices, latency, 70.0, alone=cost)
    assert found is not None and latency(found) <= 70
    assert len(measured) == len(set(measured[:-1])) + 1 < 40  # no choice is measured twice

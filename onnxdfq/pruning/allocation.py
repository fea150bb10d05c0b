"""How much goes of each group, so that the network costs no more than it may, at the least harm."""

from collections.abc import Callable, Sequence
from functools import cache

from onnxdfq.budget.search import least_loss
from onnxdfq.pruning.harms import Option

STEPS = 40  # of bisection: limits up to 10**12 are found to the last unit
Ratios = tuple[float, ...]


def allocate(
    options: Sequence[Sequence[Option]],
    cost: Callable[[Ratios], float],
    limit: float,
    *,
    alone: Callable[[Ratios], float] | None = None,
) -> Ratios | None:
    """The ratio of each group; None where even the greatest cost more than `limit`.

    Args:
        options: of each group, the first removes nothing.
        cost: of the network without those shares of its channels.
        limit: of `cost`.
        alone: of the network, where what a group spares alone tells it better; by default `cost`.

    Costs do not add up: what a layer costs is the product of what it reads and what it makes. So each option counts
    with what it spares alone, the choice of least summed harm within a limit on that sum is exact, and the limit is the
    largest whose choice costs no more than `limit` in truth, found by bisection.
    """
    counted, measured = alone or cost, cache(cost)
    whole = counted((0.0,) * len(options))
    groups = []
    for number, each in enumerate(options):
        spared = [whole - counted(_only(options, number, option)) for option in each]
        most = max(spared)
        groups.append([(round(most - one), option.harm) for one, option in zip(spared, each, strict=True)])

    def picked(within: float) -> Ratios:
        places = least_loss(groups, within)
        assert places is not None  # the cheapest of each costs nothing
        return tuple(each[place].ratio for each, place in zip(options, places, strict=True))

    low, high = 0.0, float(sum(max(one for one, _ in group) for group in groups))
    best = picked(low)
    if measured(best) > limit:
        return None
    for _ in range(STEPS):
        if high - low < 1:
            break
        middle = (low + high) / 2
        found = picked(middle)
        if measured(found) <= limit:
            low, best = middle, found
        else:
            high = middle
    return best


def greatest(options: Sequence[Sequence[Option]]) -> Ratios:
    """The most that may go of each group."""
    return tuple(each[-1].ratio for each in options)


def _only(options: Sequence[Sequence[Option]], number: int, option: Option) -> Ratios:
    return tuple(option.ratio if place == number else 0.0 for place in range(len(options)))

"""Choices in the order of their price, and the first that holds."""

from itertools import product

import pytest

from onnxdfq.budget.costs import Layer
from onnxdfq.budget.ladder import Choice, Widths, cost_of, first_that_holds, raised
from onnxdfq.errors import InputError
from onnxdfq.recipe.bits import LayerBits
from onnxdfq.recipe.budget import Budget, Budgets

LAYERS = tuple(
    Layer(node=name, weight=f"{name}_w", source=source, weights=10, scales=1, macs=100)
    for name, source in (("a", "x"), ("b", "y"), ("c", "y"))
)
WIDTHS = Widths(weight=8, activation=8, wide_activation=16, wide_weight=None)


@pytest.mark.parametrize(
    ("text", "cost", "drop"),
    [
        ("drop=0.5", None, 0.5),
        ("size=1kB, drop=2", Budget(kind="size", limit=1000), 2.0),
        ("drop=.25,bops=3", Budget(kind="bops", limit=3), 0.25),
        ("drop=0", None, 0.0),
        ("size=1kB", Budget(kind="size", limit=1000), None),
    ],
)
def test_budgets_are_read(text: str, cost: Budget | None, drop: float | None) -> None:
    assert Budgets.parse(text) == Budgets(cost=cost, drop=drop)


@pytest.mark.parametrize(
    "text",
    ["drop", "drop=", "drop=-1", "drop=100", "drop=1%", "drop=1,drop=2", "size=1kB,bops=1k", "size=1kB,", "drop=nan"],
)
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(InputError, match="is not of the form"):
        Budgets.parse(text)


@pytest.mark.parametrize(("count", "first"), [(n, k) for n, k in product(range(1, 9), range(9)) if k <= n])
def test_the_first_that_holds_is_found(count: int, first: int) -> None:
    asked: list[int] = []

    def holds(place: int) -> bool:
        asked.append(place)
        return place >= first

    assert first_that_holds(count, holds) == (first if first < count else None)
    assert len(asked) <= 1 + count.bit_length()


def test_first_sixteen_bits_then_float_the_worst_first() -> None:
    steps = raised(Choice(), LAYERS, ["c", "a", "b"], WIDTHS, others=["add"])
    wide = LayerBits(activation=16)
    assert [dict(step.bits) for step in steps] == [
        {}, {"b": wide, "c": wide}, *([{"a": wide, "b": wide, "c": wide}] * 3), {"a": wide, "b": wide},
        {"b": wide}, {"b": wide},
    ]  # fmt: skip
    assert [sorted(step.floats) for step in steps] == [[], [], [], [], [], ["c"], ["a", "c"], ["a", "add", "c"]]
    assert [step.activation for step in steps] == [None] * 4 + [16] * 4
    costs = [cost_of(step, LAYERS, WIDTHS, Budget(kind="bops", limit=1)) for step in steps]
    assert costs == sorted(costs) and costs[0] == 3 * 100 * 64 and costs[1] == 100 * (64 + 128 + 128)
    assert cost_of(steps[-1], LAYERS, WIDTHS, Budget(kind="size", limit=1)) == 3 * 4 + 10 + 2 * 40


def test_where_a_target_has_no_sixteen_bits_layers_stay_float_at_once() -> None:
    widths = Widths(weight=8, activation=8, wide_activation=None, wide_weight=None)
    steps = raised(Choice(), LAYERS, ["b", "a", "c"], widths)
    assert [sorted(step.floats) for step in steps] == [[], ["b"], ["a", "b"], ["a", "b"]]
    assert all(step.activation is None and not step.bits for step in steps)


def test_weights_get_wider_with_what_they_read() -> None:
    widths = Widths(weight=4, activation=8, wide_activation=16, wide_weight=8)
    first = raised(Choice(), LAYERS, ["b", "a", "c"], widths)[1]
    assert first.bits == {"b": LayerBits(weight=8, activation=16), "c": LayerBits(activation=16)}

"""Bounds of numbers: declared by fields, and said."""

from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args, get_type_hints

import pytest

from onnxdfq.errors import InputError
from onnxdfq.limits import Bounds, bounds_of, check_bounds
from onnxdfq.methods import DeadLeaves, Dgh, Noise, ZeroQ, load_method
from onnxdfq.recipe import Recipe
from onnxdfq.recipe.budget import Budget
from onnxdfq.recipe.names import method_names

NO_NUMBERS = [float("nan"), float("inf"), float("-inf"), -1, 10**18, 2**64, 10**5000, "8", True]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: ascii(value)[:20] if value != 10**5000 else "long")
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in (Recipe, DeadLeaves, Dgh, Noise, ZeroQ) for name in bounds_of(kind)]
)
def test_every_field_with_bounds_refuses_what_is_beyond(kind: type, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^{name} is .*; it must be (a number|(above|at least) .* and at most )"):
        kind(**{name: value})


def test_numbers_of_all_methods_have_bounds() -> None:
    for name in method_names():
        kind = load_method(name)
        hints = {field.name: get_type_hints(kind)[field.name] for field in fields(kind)}
        numbers = {field for field, hint in hints.items() if {int, float} & {hint, *get_args(hint)}}
        assert numbers == set(bounds_of(kind)), name


def test_the_ends_are_within() -> None:
    for name, bounds in bounds_of(Recipe).items():
        for end in (bounds.most, *(() if bounds.above else (bounds.least,))):
            bits = {"bits": "w4a32"} if name == "block" else {}  # blocks are for weights alone
            assert getattr(Recipe(**{name: end}, **bits), name) == end
    with pytest.raises(InputError, match=r"minutes is 0; it must be above 0 and at most 100,000\."):
        Recipe(minutes=0)


def test_whole_numbers() -> None:
    @dataclass
    class Settings:
        count: Annotated[int, Bounds(least=1, most=9)] = 1
        share: Annotated[float, Bounds(least=0, most=1)] = 0

    check_bounds(Settings(count=9, share=1))
    with pytest.raises(InputError, match=r"count is 1\.5; it must be a whole number"):
        check_bounds(Settings(count=1.5))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text", ["size=" + "9" * 400 + "GB", "bops=" + "9" * 5000, "bops=2000000T", "size=٣MB", "size=inf"]
)
def test_budgets(text: str) -> None:
    with pytest.raises(InputError, match=r"is more than any model costs; give at most|is not of the form size="):
        Budget.parse(text)

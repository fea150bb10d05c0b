"""Bounds of numbers that a user gives. A field says its own, once: `steps: Annotated[int, Bounds(least=1, most=9)]`."""

from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Annotated, Any, get_origin, get_type_hints

from onnxdfq.errors import InputError

MOST_IMAGE_BYTES = 2**32
"""Of all images of a run together, as float32 in the model's size."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """From `least` to `most`, both included; without `least` itself where `above` says so."""

    least: float
    most: float
    above: bool = False

    def __str__(self) -> str:
        return f"{'above' if self.above else 'at least'} {self.least:,} and at most {self.most:,}"

    def __contains__(self, value: Any) -> bool:
        return self.least <= value <= self.most and not (self.above and value == self.least)

    def check(self, name: str, value: Any) -> None:
        """Raises InputError, naming the field, unless the value is a number within."""
        if isinstance(value, bool) or not isinstance(value, Real):
            raise InputError(f"{name} is {value!r}; it must be a number.", field=name)
        if value not in self:
            raise InputError(f"{name} is {_digits(value)}; it must be {self}.", field=name)


IMAGES, BATCH, STEPS = (Bounds(least=1, most=most) for most in (2**16, 2**16, 100_000))
SEED = Bounds(least=0, most=2**32 - 1)
MINUTES, RATE = (Bounds(least=0, most=most, above=True) for most in (100_000, 1000))
SLICES = Bounds(least=1, most=1024)
BLOCK = Bounds(least=16, most=65_536)
SHARE = Bounds(least=0, most=1)
WEIGHT = Bounds(least=0, most=1_000_000)
"""Of a term of a loss, against the others."""


def bounds_of(kind: type) -> dict[str, Bounds]:
    """By field of the dataclass `kind`, its bounds where it has some."""
    hints = get_type_hints(kind, include_extras=True)
    annotated = [field.name for field in fields(kind) if get_origin(hints[field.name]) is Annotated]
    return {name: next(part for part in hints[name].__metadata__ if isinstance(part, Bounds)) for name in annotated}


def check_bounds(given: Any) -> None:
    """Look at the fields of a dataclass that have bounds; None is within all of them.

    Raises:
        InputError: a field is beyond its own, or is none of a whole number where that is needed.
    """
    hints = get_type_hints(type(given))
    for name, bounds in bounds_of(type(given)).items():
        value = getattr(given, name)
        if value is None:
            continue
        bounds.check(name, value)
        if hints[name] in (int, int | None) and not isinstance(value, Integral):
            raise InputError(f"{name} is {value}; it must be a whole number.", field=name)


def _digits(value: Any) -> str:
    """The number as it is written; Python writes none of more than 4,300 digits."""
    many = isinstance(value, int) and value.bit_length() > 1000
    return f"a number of {value.bit_length():,} bits" if many else str(value)

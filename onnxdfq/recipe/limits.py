"""Checks of numbers that a user gives."""

import math

from onnxdfq.errors import InputError


def at_least(name: str, value: float, least: float) -> None:
    """Raises InputError unless the field `name` is finite and at least `least`."""
    if not (math.isfinite(value) and value >= least):
        raise InputError(f"{name} is {value}; it must be at least {least}", field=name)


def positive(name: str, value: float) -> None:
    """Raises InputError unless the field `name` is finite and above 0."""
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} is {value}; it must be above 0", field=name)

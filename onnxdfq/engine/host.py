"""Host values: operator inputs that torch wants as Python numbers, not as tensors.

An operator declares them by annotation, `def Reshape(data: Tensor, shape: Ints, *, allowzero: int = 0)`, and receives
plain numbers. The plan reads them once per input shape where they are constant (plan.py), else at every call.
"""

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeAlias

from torch import Tensor

Number: TypeAlias = bool | int | float
HostValue: TypeAlias = Number | tuple[Number, ...]


@dataclass(frozen=True, kw_only=True)
class Host:
    """How an input is read, and whether the operator requires Python numbers or takes a tensor as well."""

    read: Callable[[Tensor], Any]
    required: bool = True


def _number(tensor: Tensor) -> Any:
    return tensor.item()


def _numbers(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.flatten().tolist())


def _number_if_one(tensor: Tensor) -> Any:
    return tensor.item() if tensor.numel() == 1 else tensor


Int = Annotated[int, Host(read=_number)]
Ints = Annotated[tuple[int, ...], Host(read=_numbers)]
Float = Annotated[float, Host(read=_number)]
Floats = Annotated[tuple[float, ...], Host(read=_numbers)]
Scalar = Annotated[float | Tensor, Host(read=_number_if_one, required=False)]
"""A number where it is constant (torch is faster then), otherwise the tensor."""


@cache
def host_inputs(function: Callable[..., Any]) -> Mapping[int, Host]:
    """The inputs of an operator function that are host values, by position."""
    hints = typing.get_type_hints(function, include_extras=True)
    found = {}
    for position, parameter in enumerate(inspect.signature(function).parameters.values()):
        if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
            continue
        hint = hints.get(parameter.name)
        for option in (hint, *typing.get_args(hint)):  # the second part sees through `Ints | None`
            for mark in getattr(option, "__metadata__", ()):
                if isinstance(mark, Host):
                    found[position] = mark
    return found

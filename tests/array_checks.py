"""Shapes that annotations state are checked in every call that tests make; at run time they are words only.

jaxtyping's own import hook wraps every function, also the many without an array, and checks arguments twice: the tests
of `passes` took a sixth longer. Here a function is wrapped once, and only where it names an array. Properties,
which are read often, and functions within functions stay unchecked.
"""

import inspect
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import FunctionType, ModuleType
from typing import Any, get_args

from beartype import beartype
from jaxtyping import AbstractArray, jaxtyped

CHECKED = (
    "passes",
    "onnxdfq.calibration",
    "onnxdfq.evaluation",
    "onnxdfq.images",
    "onnxdfq.synthesis",
    "onnxdfq.tuning",
)


def install() -> None:
    """From now on modules of CHECKED are imported with checks. Those that are imported already stay without."""
    sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not any(f"{fullname}.".startswith(f"{package}.") for package in CHECKED):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        own = [item for item in vars(module).items() if getattr(item[1], "__module__", None) == module.__name__]
        for name, found in own:
            if isinstance(found, FunctionType):
                setattr(module, name, checked(found))
            elif isinstance(found, type) and not issubclass(found, AbstractArray):
                _check_class(found)


def _check_class(owner: type) -> None:
    """Its methods; of a dataclass the fields too, as arguments of `__init__`."""
    for name, found in list(vars(owner).items()):
        if isinstance(found, FunctionType):
            setattr(owner, name, checked(found))
        elif isinstance(found, staticmethod | classmethod):
            setattr(owner, name, type(found)(checked(found.__func__)))


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with a check of its arrays: ints for floats, protocols and the like are mypy's business."""
    annotations = function.__annotations__
    hints = {name: hint for name, hint in annotations.items() if _has_array(hint)}
    if inspect.isgeneratorfunction(function):
        hints.pop("return", None)  # nothing is known of what it will yield
    if not hints:
        return function
    function.__annotations__ = hints
    try:
        return jaxtyped(beartype(function), typechecker=None)
    finally:
        function.__annotations__ = annotations


def _has_array(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_has_array(part) for part in get_args(hint))

"""Descriptions of the registered methods and targets, for people."""

import inspect
from dataclasses import MISSING, fields
from typing import Any, get_type_hints

from onnxdfq.limits import bounds_of
from onnxdfq.methods import load_method
from onnxdfq.recipe.names import method_names, target_names
from onnxdfq.targets import load_target


def describe_methods() -> list[dict[str, str]]:
    """Name, needs and one line of each registered method, sorted by name."""
    return [
        {"name": name, "needs": ", ".join(sorted(load_method(name).needs)), "summary": load_method(name).summary}
        for name in method_names()
    ]


def describe_method(name: str) -> dict[str, Any]:
    """Summary, needs, description and settings of one method.

    Raises:
        InputError: There is no such method; the message suggests the nearest.
    """
    kind = load_method(name)
    hints, bounds = get_type_hints(kind), bounds_of(kind)
    settings = []
    for field in fields(kind):
        values = {effort: table[field.name] for effort, table in kind.efforts.items() if field.name in table}
        efforts = "".join(f", {value} at {effort}" for effort, value in values.items())
        default = "" if field.default is MISSING else f"{field.default}{efforts}"
        allowed = _kind(hints[field.name]) + (f", {bounds[field.name]}" if field.name in bounds else "")
        settings.append({"name": field.name, "kind": allowed, "default": default})
    return {
        "name": name,
        "summary": kind.summary,
        "needs": ", ".join(sorted(kind.needs)),
        "description": inspect.getdoc(kind) or "",
        "settings": settings,
    }


def describe_targets() -> list[dict[str, str]]:
    """Name, title and whether the rules were compared with the runtime, of each registered target, sorted by name."""
    return [
        {
            "name": name,
            "title": load_target(name).title,
            "checked": "held against the runtime" if load_target(name).verified else "from documents",
        }
        for name in target_names()
    ]


def describe_target(name: str) -> dict[str, Any]:
    """All settings of a target's file; of its table of operators only those that compute on integers.

    Raises:
        InputError: There is no such target or file.
    """
    target = load_target(name)
    names = [field.name for field in fields(target) if field.name not in ("kept_float", "operators")]  # no run's own
    found = {name: getattr(target, name) for name in names}
    found["weight_containers"] = {str(bits): kind for bits, kind in target.weight_containers.items()}
    return found | {"integer_operators": sorted(key for key, rule in target.operators.items() if rule.takes_integers)}


def _kind(hint: Any) -> str:
    """A type in words: `Literal["a", "b"]` → `a | b`."""
    values = getattr(hint, "__args__", None)
    if values is None:
        return str(hint.__name__)
    return " | ".join(str(getattr(value, "__name__", value)).replace("NoneType", "none") for value in values)

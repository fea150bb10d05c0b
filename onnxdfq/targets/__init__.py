"""Targets: each is a TOML file in this folder."""

import tomllib
from dataclasses import MISSING, fields
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args, get_origin, get_type_hints

from onnxdfq.recipe.names import one_of
from passes.target.operator_rule import OperatorRule
from passes.target.target import Target

GREATEST_PRODUCT = 255 * 128  # of an activation and a weight of 8 bits


def target_names() -> list[str]:
    """All targets, sorted."""
    return sorted(
        entry.name.removesuffix(".toml") for entry in files(__name__).iterdir() if entry.name.endswith(".toml")
    )


@cache
def load_target(name: str) -> Target:
    """The target of this name. Raises InputError that suggests the nearest when there is none."""
    one_of("target", name, target_names())
    table = tomllib.loads(files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8"))
    return read_target(name, table)


def read_target(name: str, table: dict[str, Any]) -> Target:
    """A target from the values of its file, which has to give every field but the name, and nothing else.

    Raises ValueError: such a file is our fault, never the user's.
    """
    rules: dict[str, dict[str, Any]] = table.get("operators", {})
    operators = {
        operator: OperatorRule(**_checked(OperatorRule, rule, f"target {name}: {operator}"))
        for operator, rule in rules.items()
    }
    if "name" in table:
        raise ValueError(f"target {name}: a target is named by its file; take its name out of it")
    plain = {key: value for key, value in table.items() if key != "operators"} | {"name": name}
    target = Target(**_checked(Target, plain, f"target {name}"), operators=operators)
    if 0 < target.pair_limit < GREATEST_PRODUCT:
        raise ValueError(
            f"target {name}: pair_limit is {target.pair_limit}, but one product of 8 bits alone reaches "
            f"{GREATEST_PRODUCT}, so no weight keeps within it; give {GREATEST_PRODUCT} or more, or 0 for kernels "
            "that do not saturate"
        )
    return target


def _checked(kind: type, table: dict[str, Any], where: str) -> dict[str, Any]:
    """The table's values as the fields of the dataclass `kind` want them; each that has no default has to be there."""
    hints = get_type_hints(kind)
    needed = {field.name for field in fields(kind) if field.default is field.default_factory is MISSING}
    if wrong := (set(table) - set(hints)) | (needed - set(table)):
        raise ValueError(f"{where}: unknown or missing: {sorted(wrong)}")
    return {key: _read(f"{where}: {key}", value, hints[key]) for key, value in table.items()}


def _read(where: str, value: Any, hint: Any) -> Any:
    """`value` from TOML as the field's type: lists become tuples, keys of tables that are numbers become int."""
    if get_origin(hint) is tuple:
        kind = get_args(hint)[0]
        if isinstance(value, list) and all(type(entry) is kind for entry in value):
            return tuple(value)
    elif get_origin(hint) is Literal:
        if value in get_args(hint):
            return value
    elif hint in (str, bool, int):
        if type(value) is hint:
            return value
    elif isinstance(value, dict) and all(type(entry) is str for entry in value.values()):
        return {int(key): entry for key, entry in value.items()}
    raise ValueError(f"{where} is {value!r}, which is no {hint}")

"""Targets: each is a TOML file, in this folder, in another package, or wherever the user keeps one.

The file gives every field of `passes.target.target.Target` but the name, and a table `[operators.NAME]` of
`passes.target.operator_rule.OperatorRule` for each operator that the runtime computes on integers. A package adds a
target by the entry point `NAME = "its.module"` in the group `onnxdfq.targets`, with NAME.toml beside that module.
"""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from onnxdfq.errors import InputError
from onnxdfq.recipe.names import TARGETS, one_of, registered, target_names
from onnxdfq.recipe.reading import checked_fields, missing_fields, read_toml
from passes.lint.checks import CHECKS
from passes.target.operator_rule import OperatorRule
from passes.target.target import Target

__all__ = ["load_target", "read_target", "target_names"]

GREATEST_PRODUCT = 255 * 128  # of an activation and a weight of 8 bits


@cache
def load_target(name: str) -> Target:
    """The target of this name, or of the TOML file at this path.

    Raises:
        InputError: there is no such target (the message suggests the nearest) or file, or the file is at fault.
    """
    if name.endswith(".toml"):
        return read_target(Path(name).stem, read_toml(Path(name), "target"), where=name)
    one_of("target", name, target_names(), field="target")
    text = files(registered(TARGETS)[name].module).joinpath(f"{name}.toml").read_text(encoding="utf-8")
    return read_target(name, tomllib.loads(text))


def read_target(name: str, table: Mapping[str, Any], *, where: str | None = None) -> Target:
    """A target from the values of its file.

    Args:
        name: what it is called.
        table: every field but the name, and nothing else.
        where: the file, for messages.

    Raises:
        InputError: a key is unknown or missing, a value is none of its field's, or no weight could keep `pair_limit`.
    """
    where = where or f"the target {name}"
    if "name" in table:
        raise InputError(f"{where}: a target is named by its file; take its name out of it.", field="target")
    rules: Mapping[str, Mapping[str, Any]] = table.get("operators", {})
    operators = {key: _rule(rule, f"{where}: {key}") for key, rule in rules.items()}
    plain = {key: value for key, value in table.items() if key != "operators"} | {"name": name}
    containers = plain.get("weight_containers")
    if isinstance(containers, Mapping) and all(str(key).isdecimal() for key in containers):
        plain["weight_containers"] = {int(key): value for key, value in containers.items()}
    checked = checked_fields(Target, plain, where=where)
    if missing := missing_fields(Target, plain):
        raise InputError(f"{where} does not say {', '.join(missing)}; a target gives every field.", field="target")
    target = Target(**checked, operators=operators)
    if 0 < target.pair_limit < GREATEST_PRODUCT:
        raise InputError(
            f"{where}: pair_limit is {target.pair_limit}, but one product of 8 bits alone reaches {GREATEST_PRODUCT}, "
            f"so no weight keeps within it; give {GREATEST_PRODUCT} or more, or 0 for kernels that do not saturate.",
            field="target",
        )
    return target


def _rule(table: Mapping[str, Any], where: str) -> OperatorRule:
    rule = OperatorRule(**checked_fields(OperatorRule, table, where=where))
    for check in rule.checks:
        one_of(f"check in {where}", check, CHECKS, field="target")
    return rule

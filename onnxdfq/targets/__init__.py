"""Targets: each is a TOML file, in this folder, in another package, or wherever the user keeps one.

The file gives every field of `passes.target.target.Target` but the name, and a table `[operators.NAME]` of
`passes.target.operator_rule.OperatorRule` for each operator that the runtime computes on integers. A package adds a
target by the entry point `NAME = "its.module"` in the group `onnxdfq.targets`, with NAME.toml beside that module.
"""

import re
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import onnx_ir as ir

from onnxdfq.errors import InputError
from onnxdfq.limits import Bounds
from onnxdfq.recipe.bits import ACTIVATION_BITS, WEIGHT_BITS
from onnxdfq.recipe.names import TARGETS, one_of, registered, target_names
from onnxdfq.recipe.reading import checked_fields, missing_fields, read_toml
from passes.lint.checks import CHECKS
from passes.target.operator_rule import OperatorRule
from passes.target.target import Target
from passes.write.set_opset import IR_VERSION, OLDEST

__all__ = ["load_target", "read_target", "target_names", "target_of"]

TYPES = tuple(kind.name.lower() for kind in ir.DataType)
CONTAINERS, BIASES = ("int2", "int4", "int8"), ("none", "float", "int32", "int8")
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


def target_of(name: str) -> Target:
    """The target that a file says it was written for; that of ONNX Runtime where it names none of the registered."""
    return load_target(name if name in target_names() else "ort")


def read_target(name: str, table: Mapping[str, Any], *, where: str | None = None) -> Target:
    """A target from the values of its file.

    Args:
        name: what it is called.
        table: every field but the name, and nothing else.
        where: the file, for messages.

    Raises:
        InputError: a key is unknown or missing, a value is none of its field's, or no weight could keep `pair_limit`.
    """
    try:
        return _checked(name, table, where or f"the target {name}")
    except InputError as error:  # about a field of the file, which no option is called by
        raise InputError(str(error), field="target") from error


def _checked(name: str, table: Mapping[str, Any], where: str) -> Target:
    if "name" in table:
        raise InputError(f"{where}: a target is named by its file; take its name out of it.")
    if "kept_float" in table:
        raise InputError(f"{where}: what stays float is a matter of the model; say it with --keep-float.")
    operators = {
        key: _rule(_table(rule, f"{where}: {key}"), f"{where}: {key}")
        for key, rule in _table(table.get("operators", {}), f"{where}: operators").items()
    }
    plain = {key: value for key, value in table.items() if key != "operators"} | {"name": name}
    containers = plain.get("weight_containers")
    if isinstance(containers, Mapping) and all(re.fullmatch("[0-9]{1,2}", str(key)) for key in containers):
        plain["weight_containers"] = {int(key): value for key, value in containers.items()}
    checked = checked_fields(Target, plain, where=where)
    if missing := missing_fields(Target, plain):
        raise InputError(f"{where} does not say {', '.join(missing)}; a target gives every field.")
    target = Target(**checked, operators=operators)
    _check_numbers(target, where)
    if 0 < target.pair_limit < GREATEST_PRODUCT:
        raise InputError(
            f"{where}: pair_limit is {target.pair_limit}, but one product of 8 bits alone reaches {GREATEST_PRODUCT}, "
            f"so no weight keeps within it; give {GREATEST_PRODUCT} or more, or 0 for kernels that do not saturate.",
        )
    return target


def _rule(table: Mapping[str, Any], where: str) -> OperatorRule:
    rule = OperatorRule(**checked_fields(OperatorRule, table, where=where))
    for check in rule.checks:
        one_of(f"check in {where}", check, CHECKS)
    for form in rule.bias:
        one_of(f"bias in {where}", form, BIASES)
    for kind in re.split("[ |]+", " ".join((*rule.containers, *rule.refused, *rule.adds_pairs)).strip()):
        one_of(f"element type in {where}", kind, ("", *TYPES))
    if rule.becomes and not re.fullmatch(r"u?int(8|16) u?int(8|16)", rule.becomes):
        raise InputError(f"{where}: becomes is {rule.becomes!r}; it must be two types of integers, as in int8 uint8.")
    return rule


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where} is {value!r}; it must be a table.")
    return value


def _check_numbers(target: Target, where: str) -> None:
    """Raises InputError where a number is none that a file can be written by."""
    Bounds(least=OLDEST, most=99).check(f"{where}: opset", target.opset)
    Bounds(least=IR_VERSION[OLDEST], most=99).check(f"{where}: ir_version", target.ir_version)
    Bounds(least=0, most=2**31 - 1).check(f"{where}: pair_limit", target.pair_limit)
    for name, bits, allowed in (
        ("weight_bits", target.weight_bits, tuple(WEIGHT_BITS)),
        ("activation_bits", target.activation_bits, ACTIVATION_BITS),
    ):
        if not bits or not set(bits) <= set(allowed):
            raise InputError(f"{where}: {name} is {list(bits)}; it must be some of {list(allowed)}.")
    for kind in target.weight_containers.values():
        one_of(f"element type in {where}", kind, CONTAINERS)
    if max(target.weight_bits) > max((w for w in target.weight_containers if w <= max(WEIGHT_BITS)), default=0):
        raise InputError(f"{where}: weight_containers has none for {max(target.weight_bits)} bits.")

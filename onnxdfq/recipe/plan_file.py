"""Plan files: what is decided for single layers and tensors, in and out.

A file of ours is TOML:

    keep_float = ["type:Softmax", "/head/*"]

    [layers]
    "conv1" = "w4a8"

    [tensors]
    "relu1" = { threshold = 4.0, bits = 8, signed = false, zero_point = 0 }

Files of AIMET (encodings 1.0.0) and of ONNX Runtime (TensorQuantOverrides) are JSON, and told by what is in them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onnxdfq.errors import InputError
from onnxdfq.paths import MOST_TEXT, read_ordinary
from onnxdfq.recipe.bits import LayerBits
from onnxdfq.recipe.encodings import from_aimet, from_ort, to_aimet, to_ort
from onnxdfq.recipe.names import one_of
from onnxdfq.recipe.reading import quoted, read_toml, toml_value
from onnxdfq.recipe.tensors import TensorPin
from passes.quantize.plan import QuantPlan, shifted_name

MOST_JSON = 64 * MOST_TEXT  # a scale for each channel of a large network
TABLES = ("keep_float", "layers", "tensors")
_FORM = (
    'must hold a table [layers] with lines such as "conv1" = "w4a8", a table [tensors] with lines such as "relu1" = '
    '{ threshold = 4.0, bits = 8, signed = false }, or a list keep_float = ["type:Softmax"]'
)


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """layers: node name → bits. tensors: name of a value or weight → grid. keep_float: patterns, as `--keep-float` has
    them. foreign: whether the file speaks of all tensors of another tool's graph, of which some are none of ours.
    """

    layers: Mapping[str, LayerBits] = field(default_factory=dict)
    tensors: Mapping[str, TensorPin] = field(default_factory=dict)
    keep_float: tuple[str, ...] = ()
    foreign: bool = False


def read_plan(path: Path) -> PlanFile:
    """A plan from a file of any of the three forms.

    Raises:
        InputError: the file cannot be read, or holds anything else.
    """
    if path.suffix.lower() in (".json", ".encodings"):
        return _from_json(path)
    table = read_toml(path, "plan")
    if not table or any(key not in TABLES for key in table):
        raise InputError(f"The plan {path} {_FORM}.")
    for key, kind in (("keep_float", list), ("layers", dict), ("tensors", dict)):
        if not isinstance(table.get(key, kind()), kind):
            raise InputError(f"The plan {path} {_FORM}.")
    patterns = table.get("keep_float", [])
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise InputError(f"keep_float in {path} is {patterns!r}; it must be a list of strings.")
    return PlanFile(
        layers=_layers(table.get("layers", {}), path),
        tensors={name: _tensor(entry, name, path) for name, entry in table.get("tensors", {}).items()},
        keep_float=tuple(patterns),
    )


def plan_toml(plan: PlanFile, *, comment: str = "") -> str:
    """A file that `read_plan` reads back; `comment` goes on top, line by line."""
    lines = [f"# {line}" for line in comment.splitlines()]
    if plan.keep_float:
        lines += [f"keep_float = {toml_value(plan.keep_float)}", ""]
    lines += ["[layers]", *(f'{quoted(name)} = "{bits}"' for name, bits in plan.layers.items())]
    if plan.tensors:
        lines += ["", "[tensors]", *(f"{quoted(name)} = {_inline(pin)}" for name, pin in plan.tensors.items())]
    return "\n".join(lines) + "\n"


def plan_text(
    path: Path,
    layers: Mapping[str, LayerBits],
    plan: QuantPlan,
    kept: Sequence[str],
    *,
    containers: Mapping[str, str],
    comment: str,
) -> str:
    """What is written to a plan file, in the form that its suffix tells: .encodings is AIMET's, .json ONNX Runtime's.

    Args:
        layers: bits of each layer. plan: all grids. kept: names of what stays float. containers: of activations and
            weights, the element types in the file.
    """
    match path.suffix.lower():
        case ".encodings":
            return json.dumps(to_aimet(plan, kept), indent=1) + "\n"
        case ".json":
            return json.dumps(to_ort(plan, containers), indent=1) + "\n"
    shifted = set(map(shifted_name, plan.shifts))  # values that the float graph does not have
    tensors = {name: TensorPin.of(quant) for name, quant in plan.activations.items() if name not in shifted}
    return plan_toml(PlanFile(layers=layers, tensors=tensors, keep_float=tuple(kept)), comment=comment)


def _from_json(path: Path) -> PlanFile:
    try:
        table = json.loads(read_ordinary(path, most=MOST_JSON, called=f"The plan {path}").decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"The plan {path} cannot be read: it is no JSON.") from error
    if not isinstance(table, dict) or not table:
        raise InputError(f"The plan {path} holds neither AIMET's encodings nor ONNX Runtime's TensorQuantOverrides.")
    aimet = "activation_encodings" in table or "param_encodings" in table or "version" in table
    found = (from_aimet if aimet else from_ort)(table, str(path))
    return PlanFile(tensors=found.tensors, keep_float=found.floats, foreign=True)


def _layers(entries: Mapping[str, Any], path: Path) -> dict[str, LayerBits]:
    found = {}
    for name, text in entries.items():
        if not isinstance(text, str):
            raise InputError(f'{name!r} in {path} is {text!r}; write the bits as a string: "w4", "a8" or "w4a8".')
        found[name] = LayerBits.parse(text)
    return found


def _tensor(entry: Any, name: str, path: Path) -> TensorPin:
    if not isinstance(entry, dict):
        raise InputError(
            f"{name!r} in {path} is {entry!r}; write a table: {{ threshold = 4.0, bits = 8, signed = false }}."
        )
    for key in entry:
        one_of(f"key of {name!r} in {path}", key, ("threshold", "bits", "signed", "zero_point"))
    threshold, bits, signed = entry.get("threshold"), entry.get("bits"), entry.get("signed")
    listed = threshold if isinstance(threshold, list) else [threshold]
    whole = [value for value in (bits, entry.get("zero_point", 0)) if value is not None]
    if (
        not all(isinstance(number, int | float) and not isinstance(number, bool) for number in listed)
        or not all(isinstance(value, int) and not isinstance(value, bool) for value in whole)
        or not isinstance(signed, bool)
    ):
        raise InputError(
            f"{name!r} in {path} needs a threshold, a number or one for each output channel, and signed, true or "
            "false; bits and zero_point are whole numbers."
        )
    pin = TensorPin(
        threshold=tuple(map(float, listed)), bits=bits, signed=signed, zero_point=entry.get("zero_point", 0)
    )
    return pin.checked(name, str(path))


def _inline(pin: TensorPin) -> str:
    threshold = pin.threshold[0] if len(pin.threshold) == 1 else list(pin.threshold)
    values = {"threshold": threshold, "bits": pin.bits, "signed": pin.signed, "zero_point": pin.zero_point or None}
    return "{ " + ", ".join(f"{key} = {toml_value(value)}" for key, value in values.items() if value is not None) + " }"

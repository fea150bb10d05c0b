"""Grids of tensors in the files of other tools: AIMET's encodings, and ONNX Runtime's TensorQuantOverrides.

They write scales, and offsets or zero points; a plan has thresholds, and how far below zero a grid begins. That comes
to the same.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxdfq.errors import InputError
from onnxdfq.recipe.bits import FLOAT_BITS
from onnxdfq.recipe.tensors import BITS, TensorPin
from passes.quantize.plan import QuantPlan, TensorQuant

AIMET_VERSION = "1.0.0"
_BIAS_BITS = 32
_CONTAINERS = {f"{sign}int{bits}": (bits, sign == "") for bits in (4, 8, 16) for sign in ("", "u")}  # bits, signed
_CONTAINER = "container"  # a key of our own beside ONNX Runtime's, whose reader of JSON files takes no quant_type


@dataclass(frozen=True, kw_only=True)
class ImportedPins:
    """What a file of another tool says. floats: names of tensors that it has in float."""

    tensors: Mapping[str, TensorPin]
    floats: tuple[str, ...] = ()


def from_aimet(table: Mapping[str, Any], where: str) -> ImportedPins:
    """Of AIMET's encodings, version 1.0.0: numbers are (integer + offset) · scale, integers from 0 on.

    Biases, of 32 bits, are left out: they follow from the other two.

    Raises:
        InputError: it is of another version, or an entry is none.
    """
    if table.get("version") != AIMET_VERSION:
        raise InputError(f"{where} holds encodings of version {table.get('version')!r}; {AIMET_VERSION} is read.")
    tensors, floats = {}, []
    for kind in ("activation_encodings", "param_encodings"):
        for entry in _dicts(table.get(kind, []), where):
            name = entry.get("name")
            if not isinstance(name, str):
                raise InputError(f"An entry of {kind} in {where} has no name.")
            if entry.get("dtype", "INT") != "INT":
                floats.append(name)
            elif entry.get("bw") != _BIAS_BITS:
                bits = _whole(entry.get("bw"), name, where)
                scales, offsets = (_numbers(entry.get(key), name, where) for key in ("scale", "offset"))
                tensors[name] = _pin(scales, [-offset for offset in offsets], bits, name, where)
    return ImportedPins(tensors=tensors, floats=tuple(floats))


def to_aimet(plan: QuantPlan, kept: Iterable[str]) -> dict[str, Any]:
    """The plan as AIMET's encodings 1.0.0. kept: names of values and weights that stay float."""

    def entry(name: str, quant: TensorQuant) -> dict[str, Any]:
        below = 2 ** (quant.bits - 1) if quant.signed else quant.zero_point
        return {
            "name": name,
            "bw": quant.bits,
            "dtype": "INT",
            "enc_type": "PER_TENSOR" if quant.axis is None else "PER_CHANNEL",
            "is_sym": quant.signed,
            "scale": [float(scale) for scale in np.ravel(quant.scale)],
            "offset": [-below] * quant.threshold.size,
        }

    floats = [{"name": name, "bw": FLOAT_BITS, "dtype": "FLOAT", "enc_type": "PER_TENSOR"} for name in kept]
    return {
        "version": AIMET_VERSION,
        "activation_encodings": [entry(name, quant) for name, quant in plan.activations.items()] + floats,
        "param_encodings": [entry(name, quant) for name, quant in (plan.weights | plan.constants).items()],  # type: ignore[operator]
        "excluded_layers": [],
        "producer": "onnxdfq",
    }


def from_ort(table: Mapping[str, Any], where: str) -> ImportedPins:
    """Of ONNX Runtime's TensorQuantOverrides: name → an entry, or one for each channel. Numbers are
    (integer - zero point) · scale.

    Raises:
        InputError: an entry is none, has no scale, or does not tell whether its integers have a sign.
    """
    tensors = {}
    for name, given in table.items():
        entries = _dicts(given, where)
        kinds = {_container(entry, name, where) for entry in entries}
        if len(kinds) != 1:
            raise InputError(f"The channels of {name!r} in {where} have several element types, or there is no entry.")
        ((bits, signed),) = kinds
        least = -(2 ** (bits - 1)) if signed else 0
        scales = [_one(entry.get("scale"), name, where) for entry in entries]
        zeros = [_one(entry.get("zero_point", 0), name, where) for entry in entries]
        tensors[name] = _pin(scales, [zero - least for zero in zeros], bits, name, where)
    return ImportedPins(tensors=tensors)


def to_ort(plan: QuantPlan, containers: Mapping[str, str]) -> dict[str, list[dict[str, Any]]]:
    """The plan as ONNX Runtime's TensorQuantOverrides, for `--tensor_quant_overrides` of its static_quantize_runner.

    containers: name → element type that the integers have in the file.
    """
    found = {}
    for name, quant in (plan.activations | plan.weights).items():  # type: ignore[operator]
        container = containers[name]
        width, signed = _CONTAINERS[container]
        least = -(2 ** (width - 1)) if signed else 0
        zero = least + (2 ** (width - 1) if quant.signed else quant.zero_point)
        axis = {} if quant.axis is None else {"axis": quant.axis}
        found[name] = [
            {"scale": float(scale), "zero_point": zero, **axis, _CONTAINER: container}
            for scale in np.ravel(quant.scale)
        ]
    return found


def _pin(scales: Sequence[float], below: Sequence[float], bits: int, name: str, where: str) -> TensorPin:
    """below: how many steps each channel's grid begins below zero."""
    if len(set(below)) != 1 or len(scales) not in (len(below), 1):
        raise InputError(f"{name!r} in {where} has {len(scales)} scales and zero points {sorted(set(below))}.")
    steps = int(below[0])
    signed = steps == 2 ** (bits - 1)
    threshold = tuple(scale * 2 ** (bits - signed) for scale in scales)
    even = 0 if signed else steps + steps % 2  # see TensorQuant
    return TensorPin(threshold=threshold, bits=bits, signed=signed, zero_point=even).checked(name, where)


def _container(entry: Mapping[str, Any], name: str, where: str) -> tuple[int, bool]:
    """Bits and sign of an entry's integers."""
    text = str(entry.get("quant_type", entry.get(_CONTAINER, ""))).lower().removeprefix("quanttype.").removeprefix("q")
    if text not in _CONTAINERS:
        raise InputError(
            f"{name!r} in {where} does not tell its element type; give it a quant_type, such as QUInt8 or QInt8."
        )
    return _CONTAINERS[text]


def _dicts(given: Any, where: str) -> list[Mapping[str, Any]]:
    if not isinstance(given, list) or not all(isinstance(entry, dict) for entry in given):
        raise InputError(f"{where} holds no list of entries where one has to be.")
    return given


def _numbers(given: Any, name: str, where: str) -> list[float]:
    listed = given if isinstance(given, list) else [given]
    return [_one(number, name, where) for number in listed]


def _one(given: Any, name: str, where: str) -> float:
    if isinstance(given, list) and len(given) == 1:
        (given,) = given
    if isinstance(given, bool) or not isinstance(given, int | float) or not np.isfinite(given):
        raise InputError(f"{name!r} in {where} has {given!r} where a number has to be.")
    return float(given)


def _whole(given: Any, name: str, where: str) -> int:
    number = _one(given, name, where)
    if number != int(number) or int(number) not in BITS:
        raise InputError(f"{name!r} in {where} has {given!r} bits; tensors take 2 to 8, or 16.")
    return int(number)

"""The files in onnxdfq/targets: what is in them, that they agree with themselves, and that a slip in one is heard."""

import re
import tomllib
from importlib.resources import files
from typing import Any

import pytest

from onnxdfq.errors import InputError
from onnxdfq.targets import load_target, read_target, target_names
from passes.write.set_opset import IR_VERSION
from passes.write.write_for_target import FIRST_OPSET, FIRST_OPSET_OF_16_BITS


def table(name: str) -> dict[str, Any]:
    return tomllib.loads(files("onnxdfq.targets").joinpath(f"{name}.toml").read_text(encoding="utf-8"))


def test_the_targets_that_are_promised() -> None:
    promised = {"ort", "openvino", "tensorrt", "qnn", "vitisai", "tflite", "compact", "generic"}
    promised |= {"espdl", "stedgeai", "images"}
    assert promised == set(target_names())
    assert {name for name in promised if load_target(name).verified} >= {"ort", "openvino"}
    assert not any(load_target(name).verified for name in promised - {"ort", "openvino", "compact", "generic"})


@pytest.mark.parametrize("name", target_names())
def test_a_target_agrees_with_itself(name: str) -> None:
    target = load_target(name)
    assert target.name == name and target.title and target.sources
    assert target.ir_version == IR_VERSION[target.opset]
    assert all(target.weight_container(bits) in FIRST_OPSET for bits in target.weight_bits)
    assert all(FIRST_OPSET[dtype] <= target.opset for dtype in target.weight_containers.values())
    assert target.format == "float" or 16 not in target.activation_bits or target.opset >= FIRST_OPSET_OF_16_BITS
    assert target.small_ranges == "clip" or not {2, 3, 4, 5, 6, 7} & set(target.activation_bits)
    assert not target.shift_limits or (target.power_of_two and not target.per_channel_weights)
    assert all(int(re.sub(r"\D", "", dtype)) == width for width, dtype in target.weight_containers.items())


def test_the_narrowest_container_holds_the_bits() -> None:
    compact = load_target("compact")
    assert [compact.weight_container(bits) for bits in (2, 3, 4, 5, 8)] == ["int2", "int4", "int4", "int8", "int8"]
    with pytest.raises(ValueError, match="no container for weights of 16 bits"):
        compact.weight_container(16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weigth_bits": [8]}, "Did you mean 'weight_bits'"),
        ({"bias": None}, "does not say bias; a target gives every field"),
        ({"bias": "int16"}, "Unknown bias: 'int16'"),
        ({"opset": "21"}, "opset in the target ort is '21': it must be `int`"),
        ({"verified": 1}, "verified in the target ort is 1: it must be `bool`"),
        ({"weight_bits": [8, "4"]}, r"weight_bits in the target ort is \[8, '4'\]: it must be `int`"),
        ({"weight_bits": 8}, "weight_bits in the target ort is 8: it must be `array`"),
        ({"weight_containers": {"8": 8}}, "weight_containers in the target ort is"),
        ({"operators": 5}, "operators is 5; it must be a table"),
        ({"operators": {"Conv": []}}, r"Conv is \[\]; it must be a table"),
        ({"operators": {"Conv": {"containers": ["uint9"]}}}, "Unknown element type in the target ort: Conv: 'uint9'"),
        ({"operators": {"Conv": {"bias": ["int9"]}}}, "Unknown bias in the target ort: Conv: 'int9'"),
        ({"operators": {"*": {"becomes": "int8"}}}, "becomes is 'int8'; it must be two types of integers"),
        ({"opset": 5}, "opset is 5; it must be at least 17 and at most 99"),
        ({"ir_version": 10**18}, "ir_version is 1000000000000000000; it must be at least 8"),
        ({"pair_limit": -1}, "pair_limit is -1; it must be at least 0"),
        ({"weight_bits": []}, r"weight_bits is \[\]; it must be some of \[2, 3"),
        ({"activation_bits": [7, 9]}, r"activation_bits is \[7, 9\]; it must be some of"),
        ({"weight_containers": {}}, "weight_containers has none for 8 bits"),
        ({"weight_containers": {"8": "int9"}}, "Unknown element type in the target ort: 'int9'"),
        ({"weight_containers": {"9" * 5000: "int8"}}, "weight_containers in the target ort is"),
        ({"weight_containers": {"٨": "int8"}}, "weight_containers in the target ort is"),
        ({"pair_limit": 32000}, "one product of 8 bits alone reaches 32640, so no weight keeps within it"),
        ({"name": "other"}, "named by its file"),
        ({"operators": {"Conv": {"verdicts": "integer"}}}, "Did you mean 'verdict'"),
    ],
)
def test_a_slip_in_a_file_is_heard(change: dict[str, Any], message: str) -> None:
    changed = {key: value for key, value in (table("ort") | change).items() if value is not None}
    with pytest.raises(InputError, match=message):
        read_target("ort", changed)


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'tensort'\. Did you mean 'tensorrt'"):
        load_target("tensort")

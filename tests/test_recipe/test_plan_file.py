"""Plan files: ours, AIMET's and ONNX Runtime's, in and out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxdfq.errors import InputError
from onnxdfq.recipe.bits import LayerBits
from onnxdfq.recipe.encodings import from_aimet, from_ort, to_aimet, to_ort
from onnxdfq.recipe.plan_file import PlanFile, plan_toml, read_plan
from onnxdfq.recipe.tensors import TensorPin
from passes.quantize.plan import QuantPlan

PINS = {
    "x": TensorPin(threshold=(2.0,), bits=8, signed=True),
    "relu": TensorPin(threshold=(6.5,), bits=4, signed=False),
    "gelu": TensorPin(threshold=(0.1,), bits=16, signed=False, zero_point=12),
    "w": TensorPin(threshold=(0.5, 0.25, 1 / 3), bits=8, signed=True),
}


def quant_plan() -> QuantPlan:
    quants = {name: pin.quant(8, 0) for name, pin in PINS.items()}
    return QuantPlan(activations={name: quants[name] for name in ("x", "relu", "gelu")}, weights={"w": quants["w"]})


def written(folder: Path, text: str, suffix: str = ".toml") -> Path:
    path = folder / f"plan{suffix}"
    path.write_text(text, encoding="utf-8")
    return path


def test_ours_comes_back(tmp_path: Path) -> None:
    plan = PlanFile(layers={"conv": LayerBits(weight=4)}, tensors=PINS, keep_float=("type:Softmax", 'a "b" [*]'))
    assert read_plan(written(tmp_path, plan_toml(plan, comment="one\ntwo"))) == plan


def test_a_grid_is_the_same_in_every_form() -> None:
    plan = quant_plan()
    names = {"x": "uint8", "relu": "uint8", "gelu": "uint16", "w": "int8"}
    aimet, ort = from_aimet(to_aimet(plan, ["s"]), "here"), from_ort(to_ort(plan, names), "here")
    assert aimet.floats == ("s",)
    for name, quant in {**plan.activations, **plan.weights}.items():
        for pin in (aimet.tensors[name], ort.tensors[name]):
            # ONNX Runtime's entry has the container's bits, of which the grid is the beginning
            found = pin.quant(8, 0)
            np.testing.assert_allclose(found.scale, quant.scale, rtol=1e-12)
            assert (found.signed, found.zero_point) == (quant.signed, quant.zero_point)
        assert aimet.tensors[name].bits == quant.bits


def test_aimets_own_numbers() -> None:
    """min = offset · scale, as its documentation has it: 0.1 · -3 for an input from -0.3 on."""
    entry = {"name": "v", "bw": 8, "dtype": "INT", "enc_type": "PER_TENSOR", "is_sym": False}
    table = {
        "version": "1.0.0",
        "activation_encodings": [entry | {"scale": [0.1], "offset": [-4]}],
        "param_encodings": [
            entry | {"name": "w", "bw": 4, "is_sym": True, "scale": [0.5, 0.25], "offset": [-8, -8]},
            entry | {"name": "b", "bw": 32, "scale": [1e-4], "offset": [-(2**31)]},
        ],
    }
    found = from_aimet(table, "here").tensors
    assert set(found) == {"v", "w"}
    quant = found["v"].quant(8, None)
    assert quant.range == (-4, 251) and float(quant.scale) == pytest.approx(0.1)
    assert found["w"] == TensorPin(threshold=(4.0, 2.0), bits=4, signed=True)


def test_an_odd_zero_point_becomes_even() -> None:
    entry = {"scale": 0.1, "zero_point": 3, "quant_type": "QUInt8"}
    assert from_ort({"v": [entry]}, "here").tensors["v"].zero_point == 4
    signed = {"scale": 0.1, "zero_point": -125, "quant_type": "QInt8"}
    assert from_ort({"v": [signed]}, "here").tensors["v"].zero_point == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must hold a table"),
        ("keep_floats = []", "must hold a table"),
        ("keep_float = 'type:Softmax'", "must hold a table"),
        ("keep_float = [1]", "must be a list of strings"),
        ("tensors = 5", "must hold a table"),
        ("[tensors]\nv = 4.0", "write a table"),
        ("[tensors]\nv = { treshold = 4.0, signed = true }", "Did you mean 'threshold'"),
        ("[tensors]\nv = { threshold = 4.0 }", "needs a threshold, .*and signed"),
        ("[tensors]\nv = { threshold = '4', signed = true }", "needs a threshold"),
        ("[tensors]\nv = { threshold = [], signed = true }", "no number above 0"),
        ("[tensors]\nv = { threshold = -1.0, signed = true }", "no number above 0"),
        ("[tensors]\nv = { threshold = nan, signed = true }", "no number above 0"),
        ("[tensors]\nv = { threshold = 1, signed = true, bits = 9 }", "has 9 bits"),
        ("[tensors]\nv = { threshold = 1, signed = true, zero_point = 2 }", "number of steps below zero, even"),
        ("[tensors]\nv = { threshold = 1, signed = false, zero_point = 3 }", "number of steps below zero, even"),
    ],
)
def test_what_is_no_plan_of_ours(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_plan(written(tmp_path, text))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ([], "neither AIMET's"),
        ({"version": "0.6.1", "param_encodings": {}}, "version '0.6.1'; 1.0.0 is read"),
        ({"version": "1.0.0", "param_encodings": {}}, "holds no list of entries"),
        ({"version": "1.0.0", "param_encodings": [{"bw": 8}]}, "has no name"),
        ({"version": "1.0.0", "param_encodings": [{"name": "v", "bw": 7.5}]}, "has 7.5 bits"),
        ({"version": "1.0.0", "param_encodings": [{"name": "v", "bw": 8, "scale": ["a"]}]}, "where a number has to be"),
        ({"v": [{"scale": 1, "zero_point": 0}]}, "does not tell its element type"),
        ({"v": []}, "or there is no entry"),
        ({"v": [{"scale": 1, "quant_type": "QInt8"}, {"scale": 1, "quant_type": "QUInt8"}]}, "several element types"),
        ({"v": [{"scale": 0, "quant_type": "QInt8"}]}, "no number above 0"),
        ({"v": [{"scale": True, "quant_type": "QInt8"}]}, "where a number has to be"),
    ],
)
def test_what_is_no_file_of_another_tool(content: Any, message: str, tmp_path: Path) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    with pytest.raises(InputError, match=message):
        read_plan(written(tmp_path, text, ".json"))

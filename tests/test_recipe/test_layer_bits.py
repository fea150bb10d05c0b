"""Bits of single layers: as text, as a file, in calibration."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.calibration.calibration import Calibration
from onnxdfq.errors import InputError
from onnxdfq.recipe.bits import LayerBits
from onnxdfq.recipe.plan_file import PlanFile, plan_toml, read_plan
from onnxdfq.targets import load_target
from passes.quantize.plan import QuantPlan

from ..graphs import build


@pytest.mark.parametrize(
    ("text", "weight", "activation"), [("w4", 4, None), ("a8", None, 8), ("W2A16", 2, 16), (" w8a8 ", 8, 8)]
)
def test_bits_are_read(text: str, weight: int | None, activation: int | None) -> None:
    assert LayerBits.parse(text) == LayerBits(weight=weight, activation=activation)
    assert str(LayerBits.parse(text)) == text.strip().lower()


@pytest.mark.parametrize("text", ["", "8", "a8w4", "w4 a8", "w4a"])
def test_what_is_no_bits_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="write w4, a8 or w4a8"):
        LayerBits.parse(text)


@pytest.mark.parametrize("text", ["w1", "w9", "a1", "a12", "w4a32"])
def test_impossible_bits_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not possible: weights take 2 to 8 bits"):
        LayerBits.parse(text)


def test_a_plan_comes_back_from_its_file(tmp_path: Path) -> None:
    bits = {
        "/layer1/layer1.0/conv1/Conv": LayerBits(weight=4, activation=8),
        'a "quoted" \\ name\twith\x7f all': LayerBits(weight=2),
        "Ünïcode = [x]": LayerBits(activation=16),
    }
    (tmp_path / "plan.toml").write_text(plan_toml(PlanFile(layers=bits), comment="two\nlines"), encoding="utf-8")
    assert list(read_plan(tmp_path / "plan.toml").layers.items()) == list(bits.items())
    assert (tmp_path / "plan.toml").read_text().startswith("# two\n# lines\n[layers]\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("= =", "cannot be read"),
        ("conv1 = 'w4'\n", r"must hold a table \[layers\]"),
        ("[layers]\n[more]\n", r"must hold a table \[layers\]"),
        ("layers = 'w4'\n", r"must hold a table \[layers\]"),
        ("[layers]\nconv1 = 4\n", "'conv1' in .* is 4; write the bits as a string"),
        ("[layers]\nconv1 = '4'\n", "write w4, a8 or w4a8"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_plan(tmp_path / "plan.toml")


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"The plan .*absent\.toml: there is no such file"):
        read_plan(tmp_path / "absent.toml")


def model() -> ir.Model:
    text = """(float[N,4] x) => (float[N,4] y, float[N,4] z) {
        h = Gemm (x, w) r = Relu (h) f = Flatten (r) y = Gemm (f, u) z = Gemm (r, v)
    }"""
    random = np.random.default_rng(0)
    return build(text, **{name: random.normal(size=(4, 4)).astype("f4") for name in "wuv"})


def plan(target: str = "ort", activation_bits: int = 8, **bits: str) -> QuantPlan:
    pins = {name: LayerBits.parse(text) for name, text in bits.items()}
    pixels: np.ndarray[Any, Any] = np.random.default_rng(1).normal(size=(8, 4)).astype("f4")
    calibration = Calibration(layer_bits=pins, activation_bits=activation_bits)
    return calibration.plan(model(), pixels, load_target(target))


def test_calibration_gives_each_layer_its_bits() -> None:
    found = plan(Gemm_h="w3a4", Gemm_y="w2a5")
    assert {name: quant.bits for name, quant in found.weights.items()} == {"w": 3, "u": 2, "v": 8}
    # the image keeps 8 bits; 'f' only moves 'r' about, so the layer's input is 'r'
    assert {name: quant.bits for name, quant in found.activations.items()} == {"x": 8, "r": 5, "y": 8, "z": 8}
    alone = plan(activation_bits=5)
    assert {name: quant.bits for name, quant in alone.activations.items()} == {"x": 8, "r": 5, "y": 8, "z": 8}
    assert found.activations["r"].threshold == alone.activations["r"].threshold


def test_float_activations_stay_float() -> None:
    found = plan(activation_bits=32, Gemm_y="w2a5")
    assert found.activations == {}
    assert found.weights["u"].bits == 2


def test_layers_that_read_the_same_share_its_width() -> None:
    assert plan(Gemm_y="a5", Gemm_z="a5").activations["r"].bits == 5
    with pytest.raises(InputError, match=r"'Gemm_y' and 'Gemm_z' read the same values.*; 5 and 6 bits are asked for"):
        plan(Gemm_y="a5", Gemm_z="a6")


def test_an_unknown_layer_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(InputError, match=r"Unknown layer: 'Gem_y'\. Did you mean 'Gemm_y'\?"):
        plan(Gem_y="w4")
    with pytest.raises(InputError, match="Unknown layer: 'Relu_r'"):
        plan(Relu_r="w4")


def test_the_target_has_to_take_the_bits() -> None:
    with pytest.raises(InputError, match=r"takes weights of .* bits, not of 4"):
        plan("vitisai", Gemm_y="w4")

"""Patterns of what stays float, and what of a graph is quantized then."""

from dataclasses import replace
from types import ModuleType

import onnx_ir as ir
import pytest

from onnxdfq.targets import load_target
from passes.quantize.kept_float import NothingMatches, kept_float
from passes.quantize.points import QuantPoints, find_quant_points
from passes.target.target import Target


def points(model: ir.Model, *patterns: str, target: str = "ort") -> QuantPoints:
    found: Target = load_target(target)
    return find_quant_points(model, replace(found, kept_float=kept_float(model, patterns)))


def weights(found: QuantPoints) -> set[str]:
    return {use.initializer for use in found.weights}


@pytest.mark.parametrize(
    ("pattern", "nodes", "values"),
    [
        ("Conv_h", {"Conv_h"}, set()),
        ("h", set(), {"h"}),
        ("v", set(), {"v"}),
        ("G*", {"GlobalAveragePool_p", "Gemm_y"}, set()),
        ("?", set(), set("xhrpfywbv")),
        ("type:Gemm", {"Gemm_y"}, set()),
        ("type:G*", {"GlobalAveragePool_p", "Gemm_y"}, set()),
        ("before:r", {"Conv_h", "Relu_r"}, set()),
        ("after:r", {"GlobalAveragePool_p", "Flatten_f", "Gemm_y"}, set()),
        ("before:x", set(), set()),
    ],
)
def test_patterns(two_layers: ir.Model, pattern: str, nodes: set[str], values: set[str]) -> None:
    found = kept_float(two_layers, [pattern])
    assert (found.nodes, found.values) == (nodes, values)


@pytest.mark.parametrize("pattern", ["Conv_g", "type:Convv", "before:nothing", "after:Conv_h", "Z*", "type:", ""])
def test_a_pattern_that_fits_nothing_is_heard(two_layers: ir.Model, pattern: str) -> None:
    with pytest.raises(NothingMatches) as caught:
        kept_float(two_layers, ["Conv_h", pattern])
    assert caught.value.pattern == pattern and caught.value.names


def test_a_layer_goes_with_its_weight_its_output_and_the_function_computed_along(two_layers: ir.Model) -> None:
    assert points(two_layers).activations == ("x", "r", "p", "y")
    found = points(two_layers, "Conv_h")
    assert found.activations == ("x", "p", "y") and weights(found) == {"v"}
    found = points(two_layers, "Gemm_y")
    assert found.activations == ("x", "r", "p") and weights(found) == {"w"}
    assert points(two_layers, "after:p").same_as == {}, "a Flatten that stays float shares no grid"


def test_a_value_stays_float_alone(two_layers: ir.Model) -> None:
    assert points(two_layers, "r").activations == ("x", "p", "y")
    found = points(two_layers, "p")
    assert found.activations == ("x", "r", "y") and "f" not in found.same_as
    assert weights(points(two_layers, "w")) == {"v"} and points(two_layers, "w").activations == ("x", "r", "p", "y")


def test_nodes_by_operator(nets: ModuleType) -> None:
    model = nets.vit()
    assert "p" in points(model).activations
    found = points(model, "type:Softmax")
    assert set(points(model).activations) - set(found.activations) == {"p"}
    assert weights(found) == weights(points(model))

"""The table of operators against ONNX itself."""

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from passes.graph.operators import CURVES, HOMOGENEOUS, KNOWN_RANGE, MOVEMENTS, PARAMETERS, SELECTIONS, TRAITS


def apply(op_type: str, x: np.ndarray) -> np.ndarray:
    inputs = {"x": x}
    if op_type == "PRelu":
        inputs["slope"] = np.array([0.25], np.float32)
    node = onnx.helper.make_node(op_type, list(inputs), ["y"])
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in inputs],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 24)])
    return np.asarray(ReferenceEvaluator(model).run(None, inputs)[0])


def test_every_row_is_an_operator_of_onnx() -> None:
    assert [op_type for op_type in TRAITS if not onnx.defs.has(op_type)] == []


def test_parameters_are_inputs_that_the_operator_has() -> None:
    for op_type, slots in PARAMETERS.items():
        assert max(slots) < onnx.defs.get_schema(op_type).max_input


def test_movements_select() -> None:
    assert MOVEMENTS < SELECTIONS


@pytest.mark.parametrize("op_type", sorted(CURVES - {"Clip"}))  # of a Clip the bounds tell
def test_curves_are_homogeneous_if_the_table_says_so(op_type: str) -> None:
    x = np.linspace(-4, 4, 81, dtype=np.float32)
    same = np.allclose(apply(op_type, 4 * x), 4 * apply(op_type, x), rtol=1e-6, atol=1e-6)
    assert same == (op_type in HOMOGENEOUS)


@pytest.mark.parametrize("op_type", sorted(KNOWN_RANGE))
def test_outputs_stay_in_the_known_range(op_type: str) -> None:
    low, high = KNOWN_RANGE[op_type]
    y = apply(op_type, np.linspace(-30, 30, 121, dtype=np.float32))
    assert low <= y.min() and y.max() <= high

"""Small graphs written as text, and the oracle: ONNX Runtime without its optimizer."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray


def _run(model: ir.Model, seed: int, batch: int) -> dict[str, NDArray[Any]]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(seed)
    feeds = {}
    for value in session.get_inputs():
        shape = [size if isinstance(size, int) else batch for size in value.shape]
        feeds[value.name] = random.normal(0, 2, shape).astype(np.float32)
    return dict(zip([out.name for out in session.get_outputs()], session.run(None, feeds), strict=True))


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """assert_same(model, *passes): runs the passes on `model`; outputs by name equal before and after, batch 2."""

    def check(model: ir.Model, *passes: ir.passes.PassBase, rtol: float = 1e-4, batch: int = 2) -> None:
        before = _run(model, seed=3, batch=batch)
        modified = [step(model).modified for step in passes]
        after = _run(model, seed=3, batch=batch)
        assert any(modified), "the passes changed nothing: the comparison would prove nothing"
        assert list(after) == list(before)
        for name, wanted in before.items():
            np.testing.assert_allclose(after[name], wanted, rtol=rtol, atol=rtol * np.abs(wanted).max(), err_msg=name)

    return check


@pytest.fixture
def operators() -> Callable[[ir.Model], dict[str, int]]:
    """operators(model): how many nodes of each operator the main graph holds."""
    return lambda model: dict(Counter(node.op_type for node in model.graph))


@pytest.fixture
def run_on() -> Callable[..., dict[str, NDArray[Any]]]:
    """run_on(model, input=array, ...): the outputs by name; of every value of the main graph with every_value=True."""

    def run(model: ir.Model, *, every_value: bool = False, **feeds: NDArray[Any]) -> dict[str, NDArray[Any]]:
        proto = ir.to_proto(model)
        if every_value:
            named = {output.name for output in proto.graph.output}
            values = [name for node in proto.graph.node for name in node.output if name and name not in named]
            proto.graph.output.extend(onnx.helper.make_value_info(name, onnx.TypeProto()) for name in values)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results = session.run(None, {name: np.asarray(array, np.float32) for name, array in feeds.items()})
        return dict(zip([out.name for out in session.get_outputs()], results, strict=True))

    return run

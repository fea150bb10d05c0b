"""Blocks on trial: each is cut out of its graph and run alone."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from onnxdfq.tuning.blocks import Block
from passes.quantize.points import weight_uses


def _run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray], wanted: Sequence[str]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(wanted, session.run(list(wanted), feeds), strict=True))


def _check(model: ir.Model, blocks: Sequence[Block], batch: int = 2) -> None:
    """Every weight lies in one block, but for scales of channels; a block computes its exit from its entry alone."""
    weights = [use.initializer for node in model.graph for use in weight_uses(node) if not use.scales]
    assert sorted(weight for block in blocks for weight in block.weights) == sorted(weights)
    order = {weight: index for index, weight in enumerate(weights)}
    firsts = [order[block.weights[0]] for block in blocks]
    assert firsts == sorted(firsts)
    proto = ir.to_proto(model)
    tapped = onnx.ModelProto.FromString(proto.SerializeToString())
    outputs = {value.name for value in proto.graph.output}
    inner = {name for block in blocks for name in (block.entry, block.exit)} - {v.name for v in proto.graph.input}
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(inner - outputs))
    random = np.random.default_rng(0)
    feeds = {
        value.name: random.normal(size=[d.dim_value or batch for d in value.type.tensor_type.shape.dim]).astype("f4")
        for value in proto.graph.input
    }
    values = feeds | _run(tapped, feeds, sorted(inner))
    for block in blocks:
        nodes = [node for node in proto.graph.node if node.name in block.nodes]
        read = {name for node in nodes for name in node.input}
        alone = onnx.helper.make_graph(
            nodes,
            "block",
            [onnx.helper.make_tensor_value_info(block.entry, onnx.TensorProto.FLOAT, values[block.entry].shape)],
            [onnx.ValueInfoProto(name=block.exit)],
            [tensor for tensor in proto.graph.initializer if tensor.name in read],
        )
        cut = onnx.helper.make_model(alone, opset_imports=proto.opset_import, ir_version=proto.ir_version)
        found = _run(cut, {block.entry: values[block.entry]}, [block.exit])[block.exit]
        np.testing.assert_allclose(found, values[block.exit], rtol=1e-5, atol=1e-5, err_msg=block.exit)


@pytest.fixture
def assert_blocks() -> Callable[..., None]:
    """assert_blocks(model, blocks): they cover the weights once, in order, and each runs alone."""
    return _check

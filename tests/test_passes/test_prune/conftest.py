"""Numbers that float32 computes without rounding, and what channels that are zero beforehand prove."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray

from passes.graph.affine import scale_outputs
from passes.graph.editing import constant_value, is_op, set_initializer
from passes.prune.channels import choose_channels
from passes.prune.plan import ChannelPlan
from passes.prune.remove_channels import RemoveChannels


def outputs(model: ir.Model, seed: int = 0, batch: int = 2) -> list[NDArray[Any]]:
    """What ONNX Runtime computes from small whole numbers."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    random = np.random.default_rng(seed)
    feeds = {
        value.name: random.integers(-3, 4, [size if isinstance(size, int) else batch for size in value.shape]).astype(
            np.float32
        )
        for value in session.get_inputs()
    }
    return list(session.run(None, feeds))


def zero_what_goes(model: ir.Model, plan: ChannelPlan) -> None:
    """Zero filters, biases, scales and shifts of the channels that the plan takes out."""
    for node in model.graph:
        kept = plan.values.get(node.outputs[0].name or "")
        if kept is None or not is_op(node, "Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"):
            continue
        stays = np.zeros(kept.before)
        stays[kept.channels] = 1
        normalizes = is_op(node, "BatchNormalization")
        for slot in (1, 2):
            value = node.inputs[slot] if slot < len(node.inputs) else None
            array = constant_value(value)
            if array is None or value is None:
                continue
            if slot == 1 and not normalizes:
                set_initializer(value, scale_outputs(node, array.astype(float), stays).astype(array.dtype))
            else:
                set_initializer(value, (array * stays).astype(array.dtype))


@pytest.fixture
def whole() -> Callable[..., NDArray[np.float32]]:
    """whole(shape...): small whole numbers, the same in each test."""
    random = np.random.default_rng(7)
    return lambda *shape: random.integers(-3, 4, shape).astype(np.float32)


@pytest.fixture
def pruned() -> Callable[..., tuple[ir.Model, ChannelPlan]]:
    """pruned(model, ratio=0.5, multiple=2): the graph without channels, after proof: with what goes set to zero the
    whole graph computes the very same outputs."""

    def prune(model: ir.Model, *, ratio: float = 0.5, multiple: int = 2) -> tuple[ir.Model, ChannelPlan]:
        plan = choose_channels(model, ratio=ratio, multiple=multiple)
        before = outputs(model)
        zero_what_goes(model, plan)
        wanted = outputs(model)
        narrow = model.clone()
        RemoveChannels(plan)(narrow)
        found = outputs(narrow)
        for one, other, old in zip(found, wanted, before, strict=True):
            assert one.shape == old.shape
            assert np.array_equal(one, other), "what is zero changes the outputs by going"
            assert np.abs(other).max() > 0
        return narrow, plan

    return prune

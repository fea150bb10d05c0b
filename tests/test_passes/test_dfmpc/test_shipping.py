"""From the plan to the written file: its integers and scales, and what ONNX Runtime makes of them."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from onnxdfq.targets import load_target
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.dfmpc.compensate import Compensation, plan_compensation
from passes.dfmpc.plan import CompensateWeights, quantized_weights
from passes.quantize.plan import QuantPlan
from passes.write.insert_qdq import InsertQdq


def run(model, images):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": images})[0]


@pytest.mark.parametrize("kind", ["plain", "basic", "bottleneck", "inverted"])
@pytest.mark.parametrize("paper", [False, True], ids=["ours", "paper"])
def test_the_file_computes_what_the_compensated_network_computes(network, kind, paper):
    settings = (Compensation.paper if paper else Compensation)(low_bits=2, high_bits=6)
    model = network(kind)
    images = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    original = run(model, images)
    plan = plan_compensation(model, settings)
    CompensateWeights(plan)(model)
    wanted = run(model, images)
    assert np.abs(wanted - original).max() > 1e-3
    FoldBatchNorm()(model)
    written = quantized_weights(model, plan)
    quantization = QuantPlan(
        activations={},
        weights={name: weight.quant for name, weight in written.items()},
        integers={name: weight.integers for name, weight in written.items()},
    )
    InsertQdq(quantization, load_target("ort"))(model)
    np.testing.assert_allclose(run(model, images), wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    kinds = {value.dtype for value in model.graph.initializers.values() if value.name.endswith("_quantized")}
    assert kinds == {ir.DataType.INT8}
    low = {name for name, weight in plan.weights.items() if weight.bits == 2}
    assert low
    for name in low:
        integers = model.graph.initializers[f"w_{name.removeprefix('Conv_')}_quantized"].const_value.numpy()
        assert set(np.unique(integers)) == {-1, 0, 1}

"""`BlockWeights`: integers with a scale for every block, and what ONNX Runtime makes of them."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from passes.quantize.blocks import BlockLayer, BlockWeight, block_layers, rounded
from passes.write.block_weights import BlockWeights

Build = Callable[..., ir.Model]
TEXT = """(float[N,40] x) => (float[N,24] y, float[N,8] z) {
    a = MatMul (x, w)
    h = Gelu (a)
    y = Gemm <transB=1> (h, v, b)
    z = Gemm <alpha=0.5> (h, u)
}"""


def network(build: Build) -> ir.Model:
    random = np.random.default_rng(0)
    arrays = {
        name: random.normal(size=size).astype("f4")
        for name, size in (("w", (40, 32)), ("v", (24, 32)), ("b", 24), ("u", (32, 8)))
    }
    return build(TEXT, **arrays)


def written(model: ir.Model, bits: int, block: int) -> ir.Model:
    found = model.clone()
    BlockWeights(bits, block, lambda _, weight: rounded(weight, bits, block))(found)
    return found


def ran(path: Path, feeds: dict[str, Any], optimised: Path | None = None) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    if optimised is None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    else:
        options.optimized_model_filepath = str(optimised)
    found: list[np.ndarray] = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"]).run(None, feeds)
    return found


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32])
def test_the_runtime_takes_layers_into_one_kernel(bits: int, block: int, build: Build, tmp_path: Path) -> None:
    model = network(build)
    ir.save(model, tmp_path / "f.onnx")
    ir.save(written(model, bits, block), tmp_path / "q.onnx")
    onnx.checker.check_model(tmp_path / "q.onnx", full_check=True)
    feeds = {"x": np.random.default_rng(1).normal(size=(6, 40)).astype(np.float32)}
    exact, plain = ran(tmp_path / "f.onnx", feeds), ran(tmp_path / "q.onnx", feeds)
    fast = ran(tmp_path / "q.onnx", feeds, tmp_path / "o.onnx")
    for one, two, three in zip(exact, plain, fast, strict=True):
        np.testing.assert_allclose(three, two, rtol=1e-3, atol=1e-2)
        assert 0 < np.square(two - one).sum() / np.square(one).sum() < (0.03 if bits == 4 else 2e-4)
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node)
    assert kinds["MatMulNBits"] == 2 and kinds["Gemm"] == 1, "alpha is no part of a MatMul"


def test_names_and_layers(build: Build) -> None:
    model = network(build)
    assert [(layer.node, layer.depth, layer.width, layer.transposed) for layer in block_layers(model.graph)] == [
        ("MatMul_a", 40, 32, False), ("Gemm_y", 32, 24, True),
    ]  # fmt: skip
    found = written(model, 4, 16)
    assert [value.name for value in found.graph.outputs] == ["y", "z"]
    assert not {"w", "v"} & set(found.graph.initializers) and "u" in found.graph.initializers
    assert found.graph.initializers["v_quantized"].shape == ir.Shape([32, 24])


def test_memory_holds_one_weight_at_a_time(build: Build, tmp_path: Path) -> None:
    """Each is chosen once, when its turn comes to be written."""
    asked: list[str] = []

    def choose(layer: BlockLayer, weight: np.ndarray) -> BlockWeight:
        asked.append(layer.weight)
        return rounded(weight, 4, 16)

    model = network(build)
    BlockWeights(4, 16, choose)(model)
    assert asked == []
    ir.save(model, tmp_path / "q.onnx", external_data="q.onnx.data", size_threshold_bytes=0)
    assert sorted(asked) == ["v", "w"]
    onnx.checker.check_model(tmp_path / "q.onnx", full_check=True)


def test_a_weight_that_others_read_stays_for_them(build: Build) -> None:
    text = (
        "(int64[N] i, float[M,32] x) => (float[N,32] e, float[M,40] y) { e = Gather (w, i) y = Gemm <transB=1> (x, w) }"
    )
    found = written(build(text, w=np.ones((40, 32), "f4")), 4, 16)
    assert "w" in found.graph.initializers and "w_quantized" in found.graph.initializers

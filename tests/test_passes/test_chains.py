"""Long chains: nothing recurses along them, and the work grows with their length and no faster."""

import inspect
import sys
from collections.abc import Callable
from itertools import pairwise, product
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from onnxdfq.engine import TorchGraph
from onnxdfq.engine.operation import read_operations
from onnxdfq.targets import load_target
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.dfmpc.layer_pairs import find_layer_pairs
from passes.graph.batch_norm import read_batch_norms
from passes.graph.folding import folded_batch_norms
from passes.lint.lint import lint
from passes.moments.moments import batch_norm_moments
from passes.quantize.pair_sums import within_pair_sums
from passes.quantize.plan import QuantPlan, TensorQuant
from passes.quantize.points import find_quant_points
from passes.write.insert_qdq import InsertQdq

from ..slow import all_but

ONE = np.ones((1, 2, 1, 1), np.float32)
STEPS = {  # what one link of a chain is, from `{0}` to `{1}`
    "relu": "{1} = Relu({0})",
    "sigmoid": "{1} = Sigmoid({0})",
    "identity": "{1} = Identity({0})",
    "clip": "{1} = Clip({0}, low, high)",
    "product": "{1} = Mul({0}, one)",
    "quotient": "{1} = Div({0}, one)",
    "sum": "{1} = Add({0}, one)",
    "moved": "{1} = Transpose<perm=[0, 1, 3, 2]>({0})",
    "reshaped": "{1} = Reshape({0}, sizes)",
    "pooled": "{1} = MaxPool<kernel_shape=[1, 1]>({0})",
    "layers": "{1} = Conv<kernel_shape=[1, 1]>({0}, w)",
    "residual": "{1}c = Conv<kernel_shape=[1, 1]>({0}, w) {1} = Add({1}c, {0})",
    "normalized": "{1}c = Conv({0}, w) {1}n = BatchNormalization({1}c, v, v, v, v) {1} = Relu({1}n)",
    "diamond": "{1}a = Relu({0}) {1}b = Sigmoid({0}) {1} = Add({1}a, {1}b)",
    "quantized": "{1}q = QuantizeLinear({0}, scale, zero) {1}d = DequantizeLinear({1}q, scale, zero) {1} = Relu({1}d)",
    "integers": "{1} = Transpose<perm=[0, 1, 3, 2]>({0})",
}
WEIGHTS = {
    "w": np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1),
    "v": np.ones(2, np.float32),
    "one": ONE,
    "sizes": np.array([0, 2, 4, 4]),
    "low": np.float32(-1),
    "high": np.float32(6),
    "scale": np.float32(0.1),
    "zero": np.uint8(3),
}
LENGTHS = (20, 40, 80)
TARGETS = ("ort", "openvino")


def chain(step: str, length: int) -> ir.Model:
    """A Conv, so many links, and a Conv."""
    links = [STEPS[step].format(f"a{number}", f"a{number + 1}") for number in range(length)]
    if step == "integers":
        links = ["q = QuantizeLinear(a0, scale, zero)", *[link.replace("a0)", "q)") for link in links]]
    last = f"a{length}" if step != "integers" else "last"
    if step == "integers":
        links.append(f"last = DequantizeLinear(a{length}, scale, zero)")
    body = " ".join(["a0 = Conv<kernel_shape=[1, 1]>(x, w)", *links, f"y = Conv<kernel_shape=[1, 1]>({last}, w)"])
    graph = onnx.parser.parse_graph(f"g (float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y) {{ {body} }}")
    graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in WEIGHTS.items())
    for node in graph.node:
        node.name = f"{node.op_type}_{node.output[0]}"
    proto = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def _quantized(model: ir.Model) -> ir.Model:
    Canonicalize()(model)
    FoldBatchNorm()(model)
    target = load_target("openvino")
    points = find_quant_points(model, target)
    one = np.ones(())
    plan = QuantPlan(
        activations={name: TensorQuant(bits=8, signed=True, threshold=one) for name in points.activations},
        weights={use.initializer: TensorQuant(bits=8, signed=True, threshold=one) for use in points.weights},
        constants={name: TensorQuant(bits=8, signed=True, threshold=one) for name in points.constants},
        same_as=points.same_as,
    )
    InsertQdq(within_pair_sums(model, plan, target), target)(model)
    return model


def _canonical(model: ir.Model) -> ir.Model:
    Canonicalize()(model)
    return model


WORK: dict[str, tuple[Callable[[ir.Model], Any], Callable[[Any], Any]]] = {
    "canonical": (lambda model: model, _canonical),
    "points": (_canonical, lambda model: [find_quant_points(model, load_target(name)) for name in TARGETS]),
    "lint": (lambda model: model, lambda model: [lint(model, load_target(name)) for name in TARGETS]),
    "lint of what is written": (_quantized, lambda model: [lint(model, load_target(name)) for name in TARGETS]),
    "written": (lambda model: model, _quantized),
    "inspected": (lambda model: model, lambda model: (read_batch_norms(model), folded_batch_norms(model))),
    "moments": (_canonical, batch_norm_moments),
    "pairs": (_canonical, lambda model: find_layer_pairs(model, "first")),
    "engine": (lambda model: model, lambda model: TorchGraph(model)(torch.zeros(1, 2, 4, 4))),
    "taps": (
        lambda model: model,
        lambda model: list(
            TorchGraph(model, outputs=[node.outputs[0].name or "" for node in model.graph]).stream(
                torch.zeros(1, 2, 4, 4)
            )
        ),
    ),
    "engine of what is written": (_quantized, lambda model: read_operations(model.graph, ["y"])),
}


def calls_of(work: Callable[[Any], Any], given: Any) -> int:
    """How many functions, of Python and of C, are called."""
    count = 0

    def tell(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(tell)
    try:
        work(given)
    finally:
        sys.setprofile(before)
    return count


FLOAT = [step for step in STEPS if step not in ("quantized", "integers")]
PAIRS = [*product(FLOAT, WORK), *product(("quantized", "integers"), ("lint", "engine", "taps"))]
QUICK = [*product(("layers",), WORK), ("normalized", "canonical"), ("quantized", "lint")]


@pytest.mark.parametrize(("step", "work"), all_but(PAIRS, QUICK))
def test_work_grows_as_the_chain_does(step: str, work: str) -> None:
    prepare, run = WORK[work]
    run(prepare(chain(step, 2)))  # what is made once
    calls = [calls_of(run, prepare(chain(step, length))) for length in LENGTHS]
    first, second = (later - earlier for earlier, later in pairwise(calls))
    assert second <= 2.5 * max(first, 40), calls  # twice as much where it is linear, four times where it is not


STRAIGHT = ("clip", "identity", "product", "reshaped", "moved", "relu", "integers")


@pytest.mark.parametrize(
    ("step", "work"), all_but([pair for pair in PAIRS if pair[0] in STRAIGHT], [*product(("relu",), WORK)])
)
def test_nothing_recurses_along_a_chain(step: str, work: str) -> None:
    prepare, run = WORK[work]
    model, limit = chain(step, 300), sys.getrecursionlimit()
    depth = len(inspect.stack(0))
    sys.setrecursionlimit(depth + 250)
    try:
        run(prepare(model))
    finally:
        sys.setrecursionlimit(limit)

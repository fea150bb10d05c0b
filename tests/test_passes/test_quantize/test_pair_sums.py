"""Neighbouring weights against loops that say in the plainest way which products a kernel adds."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from onnxdfq.targets import load_target
from passes.lint.lint import lint
from passes.quantize.pair_sums import (
    PairOrder,
    bound_of_weight,
    greatest_pair_sum,
    pair_bound,
    pairs_beyond,
    within_pair_sums,
)
from passes.quantize.plan import QuantPlan, TensorQuant
from passes.write.write_for_target import WriteForTarget

Build = Callable[..., ir.Model]
ORT, OPENVINO, QNN = (load_target(name) for name in ("ort", "openvino", "qnn"))
LIMIT = 32767
INPUT = TensorQuant(bits=8, signed=False, threshold=np.array(1.0))


def conv(shape: tuple[int, ...], group: int = 1) -> str:
    taps = ",".join(str(size) for size in shape[2:])
    spatial = ",".join("7" for _ in shape[2:])
    return (
        f"(float[1,{shape[1] * group},{spatial}] x) => (float[1,{shape[0]},?{',?' * (len(shape) - 3)}] y) "
        f"{{ y = Conv <kernel_shape=[{taps}], group={group}> (x, w) }}"
    )


def transposed(shape: tuple[int, ...], group: int) -> str:
    return (
        f"(float[1,{shape[0]},7,7] x) => (float[1,{shape[1] * group},?,?] y) "
        f"{{ y = ConvTranspose <kernel_shape=[{shape[2]},{shape[3]}], group={group}> (x, w) }}"
    )


GEMM = "(float[2,{}] x) => (float[2,{}] y) {{ y = Gemm <transB={}> (x, w) }}"
MATMUL = "(float[2,{}] x) => (float[2,{}] y) {{ y = MatMul (x, w) }}"
LAYERS = {
    "conv": (conv((6, 4, 3, 3)), (6, 4, 3, 3)),
    "conv of odd channels": (conv((5, 3, 3, 3)), (5, 3, 3, 3)),
    "conv of one axis": (conv((4, 5, 3)), (4, 5, 3)),
    "conv of three axes": (conv((4, 3, 3, 2, 2)), (4, 3, 3, 2, 2)),
    "grouped conv": (conv((6, 3, 3, 3), group=2), (6, 3, 3, 3)),
    "multiplied channels": (conv((6, 1, 3, 3), group=3), (6, 1, 3, 3)),
    "transposed conv": (transposed((6, 4, 3, 3), 1), (6, 4, 3, 3)),
    "grouped transposed conv": (transposed((6, 2, 3, 3), 2), (6, 2, 3, 3)),
    "gemm": (GEMM.format(7, 5, 0), (7, 5)),
    "gemm, transposed": (GEMM.format(7, 5, 1), (5, 7)),
    "matmul": (MATMUL.format(8, 3), (8, 3)),
}


def neighbours(
    node: ir.Node, shape: tuple[int, ...], order: str = "flat"
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Index pairs, as the module's docstring has them."""
    if node.op_type in ("Gemm", "MatMul"):
        last = node.attributes.get_int("transB", 0) != 0
        depth, width = (shape[1], shape[0]) if last else shape
        for column, k in itertools.product(range(width), range(0, depth - 1, 2)):
            yield ((column, k), (column, k + 1)) if last else ((k, column), (k + 1, column))
        return
    group = node.attributes.get_int("group", 1)
    taps = list(np.ndindex(*shape[2:]))
    if node.op_type == "ConvTranspose":
        inner = shape[0] // group
        for g, out, tap, c in itertools.product(range(group), range(shape[1]), taps, range(0, inner - 1, 2)):
            yield (g * inner + c, out, *tap), (g * inner + c + 1, out, *tap)
        return
    for out in range(shape[0]):
        if order == "taps" and group == 1:
            for tap, c in itertools.product(taps, range(0, shape[1] - 1, 2)):
                yield (out, c, *tap), (out, c + 1, *tap)
        else:
            row = [(out, c, *tap) for tap in taps for c in range(shape[1])]
            yield from zip(row[::2], row[1::2], strict=False)


def plan_for(model: ir.Model, weight: NDArray[np.float32], threshold: NDArray[np.float64], axis: int) -> QuantPlan:
    return QuantPlan(
        activations={"x": INPUT, "y": INPUT},
        weights={"w": TensorQuant(bits=8, signed=True, threshold=threshold, axis=axis)},
    )


def random_layer(build: Build, name: str, seed: int, scheme: str) -> tuple[ir.Model, NDArray[np.float32], QuantPlan]:
    text, shape = LAYERS[name]
    random = np.random.default_rng(seed)
    weight = (random.choice([-1, 1], shape) * random.uniform(0.3, 1, shape)).astype(np.float32)
    model = build(text, w=weight)
    node = model.graph[0]
    axis = {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}.get(node.op_type, 1 - node.attributes.get_int("transB", 0))
    threshold = np.ones(shape[axis]) if scheme == "power-of-two" else random.uniform(1.0, 1.2, shape[axis])
    return model, weight, plan_for(model, weight, threshold, axis)


@pytest.mark.parametrize("order", ["flat", "taps"])
@pytest.mark.parametrize("name", LAYERS)
def test_neighbours_are_those_that_kernels_add(build: Build, name: str, order: PairOrder) -> None:
    text, shape = LAYERS[name]
    node = build(text, w=np.zeros(shape, np.float32)).graph[0]
    random = np.random.default_rng(1)
    for _ in range(20):
        integers = random.integers(-128, 128, shape)
        sums = {
            (one, other): max(
                max(integers[one], 0) + max(integers[other], 0), -min(integers[one], 0) - min(integers[other], 0)
            )
            for one, other in neighbours(node, shape, order)
        }
        assert greatest_pair_sum(node, integers, order) == max(sums.values())
        marked = pairs_beyond(node, integers, 150, order)
        beyond = {index for pair, total in sums.items() if total > 150 for index in pair}
        assert {tuple(map(int, index)) for index in np.argwhere(marked)} == beyond


def test_a_kernel_that_saturates_gives_what_the_file_says(build: Build) -> None:
    """Sums of pairs in 16 bits, for the activations that are worst for each row, against sums in 64."""
    _, shape = LAYERS["conv of odd channels"]
    model, weight, plan = random_layer(build, "conv of odd channels", 3, "power-of-two")
    before = plan.weight_integers("w", weight)
    kept = within_pair_sums(model, plan, ORT)
    for integers, holds in ((before, False), (kept.weight_integers("w", weight), True)):
        same = []
        for one, other in neighbours(model.graph[0], shape):
            pair = np.array([integers[one], integers[other]])
            for sign in (1, -1):
                exact = int(np.where(sign * pair > 0, 255, 0) @ pair)
                same.append(exact == np.clip(exact, -32768, 32767))
        assert all(same) == holds


@pytest.mark.parametrize("scheme", ["power-of-two", "free"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_keeps_within_and_few_integers_change(build: Build, name: str, scheme: str) -> None:
    target = OPENVINO if "transposed conv" in name else ORT
    for seed in range(5):
        model, weight, plan = random_layer(build, name, seed, scheme)
        kept = within_pair_sums(model, plan, target)
        node = model.graph[0]
        integers = kept.weight_integers("w", weight)
        assert greatest_pair_sum(node, integers, target.pair_order) <= 128
        # what it costs: at most what steps of twice the width for all would
        quant = plan.weights["w"]
        error = np.square(kept.rounded_weight("w", weight) - weight).sum()
        assert error <= np.square(quant.widened(1).round_trip(weight) - weight).sum() + 1e-9
        ratio = kept.weights["w"].threshold / quant.threshold
        assert set(ratio) <= {1.0, 2.0} if scheme == "power-of-two" else (ratio < 2.02).all()


def test_the_cheaper_of_two_ways_by_hand(build: Build) -> None:
    """Steps of 1/128. Row 0: one pair beyond by 2, which moved costs 2 steps squared, where wider steps would cost the
    many odd integers of the row one each. Row 1: two pairs far beyond, and all else even: wider steps cost nothing."""
    rows = np.array([[65, 65] + [11] * 14, [126, 126, 120, 120] + [10] * 12]) / 128
    weight = rows.astype(np.float32).reshape(2, 16, 1, 1)
    model = build(conv((2, 16, 1, 1)), w=weight)
    kept = within_pair_sums(model, plan_for(model, weight, np.ones(2), 0), ORT)
    assert kept.weights["w"].threshold.tolist() == [1.0, 2.0]
    integers = kept.weight_integers("w", weight).reshape(2, 16)
    assert integers[0].tolist() == [64, 64] + [11] * 14
    assert integers[1].tolist() == [63, 63, 60, 60] + [5] * 12


def test_free_scales_stretch_only_to_the_bound(build: Build) -> None:
    rows = np.array([[100, 100] * 40]) / 127
    weight = rows.astype(np.float32).reshape(1, 80, 1, 1)
    model = build(conv((1, 80, 1, 1)), w=weight)
    (threshold,) = within_pair_sums(model, plan_for(model, weight, np.array([1.007874]), 0), ORT).weights["w"].threshold
    assert threshold == pytest.approx(1.007874 * 200 / 128, rel=0.01)


def test_what_keeps_the_rule_is_not_touched(build: Build) -> None:
    weight = np.random.default_rng(0).uniform(-0.5, 0.5, (4, 4, 3, 3)).astype(np.float32)
    model = build(conv((4, 4, 3, 3)), w=weight)
    plan = plan_for(model, weight, np.ones(4), 0)
    kept = within_pair_sums(model, plan, ORT)
    assert kept.weights["w"] is plan.weights["w"] and not kept.integers
    # nor what a target does not ask for, what stays float, or a kernel that adds in 32 bits
    loud = (2 * weight).astype(np.float32)
    model = build(conv((4, 4, 3, 3)), w=loud)
    assert within_pair_sums(model, plan, QNN).weights["w"] is plan.weights["w"]
    floats = QuantPlan(activations={}, weights=plan.weights)
    assert within_pair_sums(model, floats, ORT).weights["w"] is plan.weights["w"]
    depthwise = build(conv((4, 1, 3, 3), group=4), w=np.full((4, 1, 3, 3), 0.9, np.float32))
    assert within_pair_sums(depthwise, plan, ORT).weights["w"] is plan.weights["w"]


def test_integers_that_tuning_found_are_kept_where_they_may_be(build: Build) -> None:
    weight = np.full((2, 4, 1, 1), 0.25, np.float32)
    model = build(conv((2, 4, 1, 1)), w=weight)
    found = np.array([[31, 33, 32, 31], [64, 65, 32, 31]], np.int8).reshape(2, 4, 1, 1)
    tuned = QuantPlan(
        activations={"x": INPUT}, weights=plan_for(model, weight, np.ones(2), 0).weights, integers={"w": found}
    )
    kept = within_pair_sums(model, tuned, ORT).integers["w"].reshape(2, 4)
    assert kept[0].tolist() == [31, 33, 32, 31]
    assert kept[1, 0] + kept[1, 1] <= 128


@pytest.mark.parametrize(
    ("quant", "bound"),
    [
        (INPUT, 128),  # 32767 // 255
        (TensorQuant(bits=4, signed=False, threshold=np.array(1.0)), 32767 // 15),
        (TensorQuant(bits=4, signed=True, threshold=np.array(1.0)), 32767 // (7 + 128)),
        (TensorQuant(bits=8, signed=True, threshold=np.array(1.0)), 128),
        (TensorQuant(bits=8, signed=False, threshold=np.array(1.0), zero_point=20), 128),
        (TensorQuant(bits=8, signed=False, threshold=np.array(8.0), clip=(0, 191)), 32767 // 191),
        (TensorQuant(bits=16, signed=False, threshold=np.array(1.0)), None),
    ],
)
def test_the_bound_follows_from_the_greatest_activation(build: Build, quant: TensorQuant, bound: int | None) -> None:
    weight = np.ones((2, 2, 1, 1), np.float32)
    model = build(conv((2, 2, 1, 1)), w=weight)
    plan = QuantPlan(activations={"x": quant}, weights=plan_for(model, weight, np.ones(2), 0).weights)
    assert bound_of_weight(model.graph[0], "w", plan, ORT) == bound
    assert pair_bound(LIMIT, 255) == 128


QDQ = """(uint8[1,4,3,3] xq) => (float[1,2,3,3] y) {{
    {clip}
    x = DequantizeLinear ({read}, sx, zx)
    wd = DequantizeLinear <axis=0> (w, sw, zw)
    h = Conv <kernel_shape=[1,1]> (x, wd)
    hq = QuantizeLinear (h, sx, zx)
    y = DequantizeLinear (hq, sx, zx)
}}"""
QLINEAR = """({kind}[1,4,3,3] x) => ({kind}[1,2,3,3] y) {{
    y = QLinearConv <kernel_shape=[1,1]> (x, sx, zx, w, sx, zw, sx, zx)
}}"""


def arrays(kind: str = "uint8", **more: NDArray[Any]) -> dict[str, NDArray[Any]]:
    integers = np.array([[100, 90, 1, 1], [60, 60, -60, -60]], np.int8).reshape(2, 4, 1, 1)
    return {"w": integers, "sx": np.array(0.5, "f4"), "zx": np.zeros((), kind), "zw": np.zeros((), np.int8), **more}


def test_lint_names_what_saturates(build: Build) -> None:
    per_channel = {"sw": np.ones(2, "f4"), "zw": np.zeros(2, np.int8)}
    found = {f.op_type: f for f in lint(build(QDQ.format(clip="", read="xq"), **arrays(**per_channel)), ORT)}["Conv"]
    assert found.verdict == "integer" and not found.exact
    assert "two weights of one sign may sum to 128, and here they reach 190" in found.reason
    bounded = build(
        QDQ.format(clip="xc = Clip (xq, low, high)", read="xc"),
        **arrays(**per_channel, low=np.uint8(0), high=np.uint8(170)),
    )
    assert {f.op_type: f.exact for f in lint(bounded, ORT)}["Conv"]  # 170 * 190 < 32768
    for kind, exact in (("uint8", False), ("int8", True)):  # ONNX Runtime's int8 kernel adds in 32 bits
        (only,) = lint(build(QLINEAR.format(kind=kind), **arrays(kind)), ORT)
        assert (only.op_type, only.exact) == ("QLinearConv", exact)
    assert all(f.exact for f in lint(build(QDQ.format(clip="", read="xq"), **arrays(**per_channel)), QNN))


def test_what_is_written_is_what_was_kept(build: Build) -> None:
    model, _, plan = random_layer(build, "conv", 4, "power-of-two")
    kept = within_pair_sums(model, plan, ORT)
    WriteForTarget(kept, ORT)(model)
    (finding,) = (f for f in lint(model, ORT) if f.op_type == "Conv")
    assert (finding.verdict, finding.exact) == ("integer", True)

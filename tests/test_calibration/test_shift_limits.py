"""Shifts of AMD's NPU, by hand."""

from functools import partial

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.calibration.calibration import Calibration
from onnxdfq.calibration.shift_limits import position, within_shift_limits
from onnxdfq.errors import InputError
from onnxdfq.targets import load_target
from passes.quantize.plan import QuantPlan, TensorQuant

from .. import graphs

VITISAI = load_target("vitisai")


build = partial(graphs.build, opset=17)  # the newest that Vitis AI reads


def at(place: int) -> TensorQuant:
    """Eight bits with a scale of 2**-place."""
    return TensorQuant(bits=8, signed=True, threshold=np.asarray(2.0 ** (7 - place)))


def limited(
    model: ir.Model,
    activations: dict[str, int],
    weights: dict[str, int] | None = None,
    biases: dict[str, int] | None = None,
    **more: dict[str, str],
) -> dict[str, int]:
    """Positions before → positions after; all kinds in one dictionary."""
    kinds = [{name: at(place) for name, place in kind.items()} for kind in (activations, weights or {}, biases or {})]
    plan = QuantPlan(activations=kinds[0], weights=kinds[1], bias_quants=kinds[2], **more)
    found = within_shift_limits(model, plan, VITISAI)
    quants = {**found.activations, **found.weights, **found.bias_quants}
    return {name: position(quant) for name, quant in quants.items()}


CONV = "(float[N,2,4,4] x) => (float[N,2,4,4] y) { a = Conv <kernel_shape=[1,1]> (x, w, b)  y = Relu (a) }"
PARAMETERS = {"w": np.ones((2, 2, 1, 1), "f4"), "b": np.ones(2, "f4")}


@pytest.mark.parametrize("place", [-3, 0, 7, 12])
def test_a_position_is_the_exponent_of_its_scale(place: int) -> None:
    assert position(at(place)) == place
    assert float(at(place).scale) == 2.0**-place


@pytest.mark.parametrize(
    ("before", "after"),
    [
        # x, w, y, bias: shift_cut = w + x - y in 0..16, shift_bias = w + x - bias in 0..15
        ((5, 8, 4, 9), (5, 8, 4, 9)),
        ((5, 8, 15, 13), (5, 8, 13, 13)),  # finer than the product: the output's position goes down to it
        ((9, 12, 4, 12), (9, 11, 4, 12)),  # shift_cut 17: the weight's goes down
        ((7, 9, 4, 16), (7, 9, 4, 16)),  # the bias in steps of the sums
        ((7, 9, 4, 20), (7, 9, 4, 16)),  # and never in finer ones
        ((8, 10, 4, 1), (8, 8, 4, 1)),  # shift_bias 17: a bias of coarser steps asks for coarser weights
    ],
)
def test_layers(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    x, w, y, b = before
    found = limited(build(CONV, **PARAMETERS), {"x": x, "y": y}, {"w": w}, {"Conv_a": b})
    assert tuple(found[name] for name in ("x", "w", "y", "Conv_a")) == after


@pytest.mark.parametrize(
    ("operator", "before", "after"),
    [
        ("Add", (4, 6, 5), (4, 6, 5)),
        ("Add", (2, 12, 5), (2, 9, 5)),  # inputs at most 7 apart
        ("Add", (2, 4, 12), (2, 4, 9)),  # the output at most 7 finer than the coarser input
        ("Add", (30, 29, 2), (27, 27, 2)),  # and at most 25 coarser
        ("Mul", (3, 4, 9), (3, 4, 7)),
        ("Mul", (20, 18, 4), (18, 18, 4)),
    ],
)
def test_sums_and_products(operator: str, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    model = build(f"(float[N,4] p, float[N,4] q) => (float[N,4] y) {{ y = {operator} (p, q) }}")
    found = limited(model, dict(zip("pqy", before, strict=True)))
    assert tuple(found[name] for name in "pqy") == after


def test_a_gate_has_narrower_limits() -> None:
    model = build("(float[N,4] p) => (float[N,4] y) { q = HardSigmoid (p)  y = Mul (p, q) }")
    assert limited(model, {"p": 14, "q": 7, "y": 4}) == {"p": 12, "q": 7, "y": 4}


def test_concatenations_and_pools_stand_at_one_position() -> None:
    model = build(
        """(float[N,2,4,4] p, float[N,2,4,4] q) => (float[N,4,1,1] y) {
            m = MaxPool <kernel_shape=[1,1]> (q)
            c = Concat <axis=1> (p, m)
            y = GlobalAveragePool (c)
        }"""
    )
    assert limited(model, {"p": 7, "q": 5, "c": 6, "y": 9}, same_as={"m": "q"}) == dict.fromkeys("pqcy", 5)


def test_limits_that_contradict_each_other_are_named() -> None:
    """y <= a + b and, aligned, a = y: with b below 0 there is no end to it."""
    model = build("(float[N,4] a, float[N,4] b) => (float[N,8] z) { y = Mul (a, b)  z = Concat <axis=1> (y, a) }")
    with pytest.raises(InputError, match=r"AMD NPU.* allows at '(Mul_y|Concat_z)'"):
        limited(model, {"a": 4, "b": -2, "y": 2, "z": 2})


def test_a_calibrated_network_keeps_all_limits() -> None:
    """Weights, inputs and biases of very different sizes, and the plan is within the limits nevertheless."""
    random = np.random.default_rng(0)
    text = """(float[N,2,4,4] x) => (float[N,2,4,4] y) {
        a = Conv <kernel_shape=[1,1]> (x, w, b)
        r = Relu (a)
        c = Conv <kernel_shape=[1,1]> (r, v, b)
        y = Add (c, x)
    }"""
    model = build(
        text,
        w=(1e-4 * random.normal(size=(2, 2, 1, 1))).astype("f4"),
        v=(1e-4 * random.normal(size=(2, 2, 1, 1))).astype("f4"),
        b=np.array([3.0, -50.0], "f4"),
    )
    plan = Calibration().plan(model, random.normal(size=(16, 2, 4, 4)).astype("f4"), VITISAI)
    places = {name: position(quant) for name, quant in {**plan.activations, **plan.weights}.items()}
    for node, source, weight, output in (("Conv_a", "x", "w", "r"), ("Conv_c", "r", "v", "c")):
        cut = places[source] + places[weight] - places[output]
        shift = places[source] + places[weight] - position(plan.bias_quants[node])
        assert 0 <= cut <= 16 and 0 <= shift <= 15
        rounded = plan.bias_quants[node].round_trip(plan.biases[node])
        np.testing.assert_allclose(rounded, plan.biases[node], atol=float(plan.bias_quants[node].scale))
    assert abs(places["c"] - places["x"]) <= 7 and -7 <= min(places["c"], places["x"]) - places["y"] <= 25

"""Thresholds by what they cost the outputs: worked out by hand on a network that does not look at its outliers."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import onnxdfq
from onnxdfq.calibration import by_outputs
from onnxdfq.calibration.by_outputs import thresholds_by_outputs
from onnxdfq.calibration.calibration import Calibration
from onnxdfq.targets import load_target
from passes.quantize.plan import QuantPlan

from ..graphs import build
from ..slow import slow

ORT = load_target("ort")
SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "digits" / "digits.onnx"


def network(weight_of_outliers: float, function: str = "Relu(h)") -> ir.Model:
    """Channel 0 carries outliers, which the output sees with this weight; channel 1 carries what it is about."""
    return build(
        f"(float[N, 2, 4, 4] x) => (float[N, 1, 4, 4] y) {{ h = Conv(x, w) r = {function} y = Conv(r, v) }}",
        w=np.eye(2, dtype=np.float32).reshape(2, 2, 1, 1),
        v=np.array([weight_of_outliers, 1], np.float32).reshape(1, 2, 1, 1),
        zero=np.float32(0),
        six=np.float32(6),
    )


def pixels() -> np.ndarray:
    random = np.random.default_rng(0)
    images = random.uniform(0, 1, (32, 2, 4, 4)).astype(np.float32)
    images[:, 0, 0, 0] = 7.5
    return images


@pytest.mark.parametrize("weight", [1e-4, 1.0])
def test_outliers_count_as_far_as_the_output_sees_them(weight: float) -> None:
    model, images = network(weight), pixels()
    plan = Calibration().plan(model, images, ORT)
    assert float(plan.activations["r"].threshold) == 8
    found = thresholds_by_outputs(model, plan, images)
    if weight == 1.0:
        assert "r" not in found
    else:
        assert float(found["r"].threshold) == 1, "where what the output looks at ends"
        assert found["r"].signed == plan.activations["r"].signed
    assert "x" not in found, "the image's range is known"


def test_free_thresholds_move_by_less_and_stay_within_a_clip() -> None:
    model, images = network(1e-4, "Clip(h, zero, six)"), pixels()
    plan = Calibration(scheme="free").plan(model, images, ORT)
    found = thresholds_by_outputs(model, plan, images, scheme="free")
    assert "r" not in found, "the grid has to end at the bounds"
    model = network(1e-4)
    plan = Calibration(scheme="free").plan(model, images, ORT)
    found = thresholds_by_outputs(model, plan, images, scheme="free")
    assert float(found["r"].threshold) == pytest.approx(float(plan.activations["r"].threshold) / 2**2.5)
    assert 1 < float(found["r"].threshold) < 2**0.5, "the last step by the square root of 2 that cuts nothing off"


def test_a_grid_that_begins_below_zero_may_end_earlier_on_both_sides() -> None:
    """What a LayerNormalization reads: most tokens are small, and one is large, which is normalised to no more."""
    random = np.random.default_rng(0)
    images = random.normal(0, 0.05, (64, 8, 16)).astype(np.float32)
    images[:, 0] = random.uniform(-5, 10, (64, 16))
    model = build(
        """(float[N, 8, 16] x) => (float[N, 8, 4] y) {
            h = MatMul(x, w) a = Add(h, b) n = LayerNormalization(a, s, z) y = MatMul(n, v)
        }""",
        w=np.eye(16, dtype=np.float32),
        b=np.zeros(16, np.float32),
        s=np.ones(16, np.float32),
        z=np.zeros(16, np.float32),
        v=random.normal(size=(16, 4)).astype(np.float32),
    )
    plan = Calibration().plan(model, images, ORT)
    before = plan.activations["a"]
    assert before.zero_point
    found = thresholds_by_outputs(model, plan, images, zero_points=True)["a"]
    assert float(found.scale) == float(before.scale) / 2
    assert found.zero_point == before.zero_point, "as many steps below zero, of half the size"


def test_few_bits_are_left_to_the_tuning() -> None:
    model, images = network(1e-4), pixels()
    plan = Calibration(activation_bits=4).plan(model, images, ORT)
    assert set(thresholds_by_outputs(model, plan, images)) <= {"y"} - plan.activations.keys()


def gated(function: str) -> ir.Model:
    text = f"(float[N, 1, 4, 4] x) => (float[N, 1, 4, 4] y) {{ h = Conv(x, w) g = {function}(h) y = Conv(g, w) }}"
    return build(text, w=np.ones((1, 1, 1, 1), np.float32))


def test_a_grid_begins_where_the_function_behind_it_saturates() -> None:
    images = np.random.default_rng(0).uniform(-3, 5, (64, 1, 4, 4)).astype(np.float32)
    images[:, :, 0, 0] = -12
    model = gated("Gelu")
    plan = Calibration().plan(model, images, ORT)
    assert (plan.activations["h"].signed, float(plan.activations["h"].threshold)) == (True, 16)
    without = thresholds_by_outputs(model, plan, images)["h"]
    assert (without.signed, float(without.threshold)) == (True, 8)
    found = thresholds_by_outputs(model, plan, images, zero_points=True)["h"]
    assert not found.signed
    assert float(found.scale) == 8 / 256, "a bit finer than from -8 to 8"
    assert 2 < found.zero_point * float(found.scale) < 3, "beyond, Gelu is less than half a step"
    leaky = gated("LeakyRelu")  # changes as far below zero as one looks
    plan = Calibration().plan(leaky, images, ORT)
    assert all(quant.signed for quant in thresholds_by_outputs(leaky, plan, images, zero_points=True).values())


@pytest.mark.parametrize(
    "settings, begun", [({}, True), slow(({"shift_negative": True}, False)), slow(({"target": "qnn"}, False))]
)
def test_the_pipeline_begins_grids_below_zero_where_the_target_does(
    settings: dict[str, object], begun: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def choice(*_: object, zero_points: bool, **__: object) -> dict[str, object]:
        seen.append(zero_points)
        return {}

    monkeypatch.setattr("onnxdfq.pipeline.planning.thresholds_by_outputs", choice)
    onnxdfq.compress(SAMPLE, output=tmp_path / "q.onnx", images=32, steps=20, **settings)  # type: ignore[arg-type]
    assert seen == [begun]


@pytest.mark.slow
def test_the_pipeline_takes_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    value = "/Relu_output_0"
    common = {"images": 32, "steps": 20, "force": True, "output": tmp_path / "q.onnx"}

    def scales(**settings: str) -> dict[str, float]:
        model = onnxdfq.compress(SAMPLE, **common, **settings).model  # type: ignore[arg-type]
        return {
            node.inputs[0].name or "": float(node.inputs[1].const_value.numpy())  # type: ignore[union-attr]
            for node in model.graph
            if node.op_type == "QuantizeLinear"
        }

    def doubled(model: ir.Model, plan: QuantPlan, images: np.ndarray, **_: object) -> dict[str, object]:
        quant = plan.activations[value]
        return {value: type(quant)(bits=8, signed=quant.signed, threshold=quant.threshold * 2)}

    monkeypatch.setattr("onnxdfq.pipeline.planning.thresholds_by_outputs", lambda *_, **__: {})
    schemes = ("power-of-two", "free")
    plain, widest = {scheme: scales(scheme=scheme) for scheme in schemes}, scales(clipping="max")
    monkeypatch.setattr("onnxdfq.pipeline.planning.thresholds_by_outputs", doubled)
    for scheme in schemes:
        moved = scales(scheme=scheme)
        changed = {name for name, scale in moved.items() if scale != plain[scheme][name]}
        assert changed == {value}
        assert moved[value] == pytest.approx(2 * plain[scheme][value])
    assert scales(clipping="max") == widest, "no clipping means none"


def test_of_a_long_network_only_what_is_near_its_outputs_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network(1.0)
    plan = Calibration().plan(model, pixels(), ORT)
    plans = {name: {0: plan, 1: plan} for name in ("x", "r")}
    assert by_outputs._affordable(model, plans).keys() == {"x", "r"}
    monkeypatch.setattr(by_outputs, "MOST_NODES", 7)  # two runs of all three nodes, and two of the last one, are eight
    assert by_outputs._affordable(model, plans).keys() == {"r"}

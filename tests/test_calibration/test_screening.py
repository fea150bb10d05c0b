"""Which thresholds are measured at the outputs: estimates against measurements, and what is measured without one."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.calibration.calibration import Calibration
from onnxdfq.calibration.memory import bytes_behind, images_within
from onnxdfq.calibration.screening import worth_measuring
from onnxdfq.calibration.sensitivity import measure_sensitivity
from onnxdfq.model_file.through_proto import infer_shapes
from onnxdfq.targets import load_target
from passes.quantize.plan import QuantPlan

from ..graphs import build

ORT = load_target("ort")
VALUES = ("a", "b", "c")
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(0, 1, (16, 3, 8, 8)).astype(np.float32)


def network(tail: str = "y = Conv(c, v)") -> ir.Model:
    """Three activations of which the first has an outlier."""
    random = np.random.default_rng(1)
    weights = {name: random.normal(0, 0.3, (4, 4, 3, 3)).astype(np.float32) for name in ("u", "v", "w")}
    model = build(
        f"(float[N, 3, 8, 8] x) => (float[N, 4, 2, 2] y) "
        f"{{ h = Conv(x, first) a = Relu(h) i = Conv(a, u) b = Relu(i) c = Conv(b, w) {tail} }}",
        first=random.normal(0, 1, (4, 3, 1, 1)).astype(np.float32),
        **weights,
    )
    infer_shapes(model, strict=False)
    return model


def plans_of(model: ir.Model, images: np.ndarray) -> dict[str, dict[int, QuantPlan]]:
    plan = Calibration().plan(model, images, ORT)
    return {
        name: {
            place: replace(plan, activations={**plan.activations, name: plan.activations[name].widened(doublings)})
            for place, doublings in enumerate((0, -1, 1, 2))
        }
        for name in VALUES
    }


def test_what_a_measurement_would_choose_is_measured() -> None:
    images = IMAGES.copy()
    images[0, :, 0, 0] = 40
    model = network()
    plans = plans_of(model, images)
    measured = measure_sensitivity(
        model, images, weights={}, activations=plans, batch_size=16, device="cpu", advance=lambda _: None
    ).activations
    worth = worth_measuring(model, images, plans, device="cpu")
    assert sum(map(len, worth.values())) < sum(map(len, plans.values())), "something is left out"
    for name, losses in measured.items():
        best = min(losses, key=losses.__getitem__)
        if losses[best] < 0.8 * losses[0]:
            assert best in worth[name]
            assert 0 in worth[name]
        assert 3 not in worth.get(name, {}), "nothing is four times as wide as it has to be"


def test_the_same_images_give_the_same_choice_in_other_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    plans = plans_of(model, IMAGES)
    whole = worth_measuring(model, IMAGES, plans, device="cpu")
    assert worth_measuring(model, IMAGES, plans, device="cpu") == whole
    monkeypatch.setattr("onnxdfq.calibration.screening.BATCH_BYTES", 1)
    assert worth_measuring(model, IMAGES, plans, device="cpu").keys() == whole.keys()


def test_all_is_measured_where_no_gradient_says_anything() -> None:
    model = network("d = Conv(c, v) y = Sign(d)")
    plans = plans_of(model, IMAGES)
    assert worth_measuring(model, IMAGES, plans, device="cpu") == plans


def test_images_within_a_budget() -> None:
    """Most is in memory where the first Relu makes 4 channels of 4 others, 8 × 8 each."""
    model = network()
    image, first, second, third, last = (count * 4 for count in (3 * 64, 4 * 64, 4 * 36, 4 * 16, 4 * 4))
    together = first + first
    assert images_within(model, 10 * together) == 10
    assert images_within(model, 10 * together - 1) == 9
    assert images_within(model, 1) == 1, "one runs whatever it takes"
    everything = image + 2 * first + 2 * second + third + last
    assert images_within(model, 5 * everything, keeps_all=True) == 5


def test_work_behind_a_value() -> None:
    """The output takes 4 × 4 numbers, what comes before it 4 × 16 and two times 4 × 36."""
    behind = bytes_behind(network())
    assert [behind[name] for name in ("y", "c", "b", "i")] == [0, 16 * 4, (16 + 64) * 4, (16 + 64 + 144) * 4]
    assert behind["x"] > behind["h"] > behind["a"] > behind["i"]

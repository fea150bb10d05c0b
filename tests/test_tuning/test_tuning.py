"""Tuning of whole networks: better than rounding to nearest, and what is tuned is what ships."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

import onnxdfq
from onnxdfq.calibration.calibration import Calibration
from onnxdfq.engine import TorchGraph
from onnxdfq.errors import InputError
from onnxdfq.model_file import load_model
from onnxdfq.targets import load_target
from onnxdfq.tuning.reconstruction import Reconstruction
from onnxdfq.tuning.tuning import TunedPart, Tuning, tuning_for
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.quantize.grid import is_power_of_two
from passes.quantize.plan import QuantPlan
from passes.write.insert_qdq import InsertQdq

from ..slow import slow

DIGITS = Path(__file__).resolve().parents[2] / "samples" / "digits" / "digits.onnx"
ORT = load_target("ort")
Scheme = str


@pytest.fixture(scope="module")
def model() -> ir.Model:
    """The sample network, folded. Tests only read it."""
    model = load_model(DIGITS)
    Canonicalize()(model)
    FoldBatchNorm()(model)
    return model


@pytest.fixture(scope="module")
def images(model: ir.Model) -> NDArray[np.float32]:
    shape = [int(size) for size in model.graph.inputs[0].shape or () if isinstance(size, int)]
    return np.random.default_rng(0).standard_normal((320, *shape)).astype(np.float32)


def plan_of(model: ir.Model, images: NDArray[np.float32], scheme: str) -> QuantPlan:
    return Calibration(weight_bits=2, activation_bits=6, scheme=scheme).plan(model, images[:256], ORT)  # type: ignore[arg-type]


def tuned(
    model: ir.Model, images: NDArray[np.float32], scheme: str, *, by_block: bool = True, **settings: float
) -> tuple[QuantPlan, tuple[TunedPart, ...]]:
    reconstruction = replace(Reconstruction(steps=120, batch_size=16, rate=0.1), **settings)  # type: ignore[arg-type]
    tuning = Tuning(by_block=by_block, learn_scales=scheme == "free", reconstruction=reconstruction)
    return tuning.tune(model, plan_of(model, images, scheme), ORT, images[:256])


def outputs(
    model: ir.Model, plan: QuantPlan | None, images: NDArray[np.float32]
) -> tuple[ir.Model, NDArray[np.float32]]:
    """The written graph and what ONNX Runtime, optimising, makes of the images."""
    written = model.clone()
    if plan is not None:
        InsertQdq(plan, ORT)(written)
    session = onnxruntime.InferenceSession(ir.to_proto(written).SerializeToString())
    return written, session.run(None, {session.get_inputs()[0].name: images})[0]


@pytest.mark.parametrize(
    ("scheme", "by_block"),
    [("power-of-two", True), slow(("power-of-two", False)), slow(("free", True)), slow(("free", False))],
)
def test_outputs_come_nearer_and_the_engine_agrees_with_the_runtime(
    model: ir.Model, images: NDArray[np.float32], scheme: str, by_block: bool
) -> None:
    plan, parts = tuned(model, images, scheme, by_block=by_block)
    unseen = images[256:]
    _, exact = outputs(model, None, unseen)
    _, nearest = outputs(model, plan_of(model, images, scheme), unseen)
    written, found = outputs(model, plan, unseen)
    assert np.square(found - exact).mean() < 0.75 * np.square(nearest - exact).mean()
    assert all(part.outcome.after <= part.outcome.before for part in parts)
    covered = [weight for part in parts for weight in part.block.weights]
    assert sorted(covered) == sorted(plan.weights) == sorted(plan.integers)
    with torch.no_grad():
        (engine,) = TorchGraph(written)(torch.from_numpy(unseen))
    step = float(plan.activations[str(model.graph.outputs[0].name)].scale)
    assert np.abs(engine.numpy() - found).max() <= 1.01 * step
    if scheme == "power-of-two":
        assert all(is_power_of_two(quant.scale) for quant in plan.activations.values())


@pytest.mark.slow
def test_weights_alone(model: ir.Model, images: NDArray[np.float32]) -> None:
    before = Calibration(weight_bits=2, activation_bits=32).plan(model, images[:256], ORT)
    tuning = Tuning(by_block=True, learn_scales=False, reconstruction=Reconstruction(steps=60, batch_size=16, rate=0.1))
    after, _ = tuning.tune(model, before, ORT, images[:256])
    _, exact = outputs(model, None, images[256:])
    errors = [np.square(outputs(model, plan, images[256:])[1] - exact).mean() for plan in (before, after)]
    assert errors[1] < 0.75 * errors[0]


def test_scales_of_weights_train_with_the_roundings(model: ir.Model, images: NDArray[np.float32]) -> None:
    """GENIE-M: from thresholds twice too wide, those that train come nearer than roundings alone."""
    plan = Calibration(weight_bits=2, activation_bits=32, scheme="free").plan(model, images[:256], ORT)
    wide = {name: replace(quant, threshold=2 * quant.threshold) for name, quant in plan.weights.items()}
    errors = {}
    for learn in (False, True):
        tuning = Tuning(
            by_block=True,
            learn_scales=True,
            learn_weight_scales=learn,
            reconstruction=Reconstruction(steps=60, batch_size=16, rate=0.03, factor_rate=0.02),
        )
        after, parts = tuning.tune(model, replace(plan, weights=wide), ORT, images[:256])
        errors[learn] = sum(part.outcome.after for part in parts)
        moved = [not np.allclose(after.weights[name].scale, quant.scale) for name, quant in wide.items()]
        assert any(moved) == learn
        for name, integers in after.integers.items():
            assert integers.min() >= after.weights[name].range[0] and integers.max() <= after.weights[name].range[1]
    assert errors[True] < 0.92 * errors[False]


def test_the_same_seed_gives_the_same_plan(model: ir.Model, images: NDArray[np.float32]) -> None:
    first, second = (tuned(model, images, "free", steps=10, drop=0.5)[0] for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != plan_of(model, images, "free").fingerprint


def test_a_block_that_gets_worse_is_put_back(model: ir.Model, images: NDArray[np.float32]) -> None:
    before = plan_of(model, images, "power-of-two")
    plan, parts = tuned(model, images, "power-of-two", steps=3, rate=30.0, bias_rate=0.0)
    worse = [part for part in parts if part.outcome.after == part.outcome.before]
    assert worse
    for name in worse[0].block.weights:
        value = model.graph.initializers[name].const_value
        assert value is not None
        nearest = before.weights[name].integers(value.numpy())
        assert np.abs(plan.integers[name] - nearest).max() <= (nearest != plan.integers[name]).mean() < 0.01


@pytest.mark.slow
def test_it_stops_once_hardly_a_weight_is_soft(
    model: ir.Model, images: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(share: float) -> list[int]:
        monkeypatch.setattr("onnxdfq.tuning.reconstruction.SOFT_SHARE", share)
        return [part.outcome.steps for part in tuned(model, images, "power-of-two", steps=200, penalty=0.1)[1]]

    all_decided, most_decided = stopped(0.0), stopped(0.2)
    assert set(stopped(1.0)) == {10}  # the first look
    assert all(10 < some <= every <= 200 for some, every in zip(most_decided, all_decided, strict=True))
    assert sum(most_decided) < sum(all_decided)


SHUFFLE = """<ir_version: 10, opset_import: ["" : 21]>
network (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y{more}) {{
  a = Conv <pads = [1, 1, 1, 1]> (x, w0)
  parted = Reshape (a, split)
  halves = Transpose <perm = [2, 0, 1, 3, 4]> (parted)
  left = Gather <axis = 0> (halves, zero)
  right = Gather <axis = 0> (halves, one)
  b = Conv <pads = [1, 1, 1, 1]> (right, w1)
  c = Relu (b)
  d = Conv <pads = [1, 1, 1, 1]> (c, w2)
  y = Concat <axis = 1> (left, d)
}}"""


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        pytest.param("", [("w0",), ("w1", "w2")], id="the shuffle belongs to the block"),
        pytest.param(", float[2, N, 2, 6, 6] halves", [("w0",), ("w1",), ("w2",)], id="no images at the entry"),
    ],
)
def test_a_block_behind_a_channel_shuffle(more: str, parts: list[tuple[str, ...]]) -> None:
    proto = onnx.parser.parse_model(SHUFFLE.format(more=more))
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "w0": random.standard_normal((4, 4, 3, 3)).astype("f4"),
        "w1": random.standard_normal((2, 2, 3, 3)).astype("f4"),
        "w2": random.standard_normal((2, 2, 3, 3)).astype("f4"),
        "split": np.array([0, 2, 2, 6, 6]),
        "zero": np.array(0),
        "one": np.array(1),
    }
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    Canonicalize()(model)
    pixels = random.standard_normal((64, 4, 6, 6)).astype("f4")
    plan = Calibration(weight_bits=3, activation_bits=8).plan(model, pixels, ORT)
    tuning = Tuning(by_block=True, learn_scales=False, reconstruction=Reconstruction(steps=20, batch_size=16))
    tuned, found = tuning.tune(model, plan, ORT, pixels)
    assert [part.block.weights for part in found] == parts
    assert set(tuned.integers) == {"w0", "w1", "w2"}


def test_default_by_bits() -> None:
    assert tuning_for(None, weight_bits=8, learn_scales=False, learn_weight_scales=False, effort="fast") is None
    assert tuning_for("none", weight_bits=4, learn_scales=False, learn_weight_scales=False, effort="fast") is None
    found = tuning_for(None, weight_bits=4, learn_scales=True, learn_weight_scales=True, effort="paper")
    assert found is not None
    assert (found.by_block, found.learn_scales, found.reconstruction.steps) == (True, True, 20000)
    layers = tuning_for("adaround", weight_bits=8, learn_scales=False, learn_weight_scales=False, effort="fast")
    assert layers is not None
    assert not layers.by_block


def test_too_few_images_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"batches of 32 images and there are 8.*--tuning none"):
        onnxdfq.compress(DIGITS, output=tmp_path / "q.onnx", bits="w4a8", method="noise", images=8)
    assert not list(tmp_path.iterdir())


def test_several_targets_of_one_plan_are_tuned_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    tune = Tuning.tune
    monkeypatch.setattr("onnxdfq.tuning.tuning.EFFORTS", {"fast": Reconstruction(steps=2)})
    monkeypatch.setattr(Tuning, "tune", lambda self, *given, **named: calls.append(1) or tune(self, *given, **named))
    result = onnxdfq.compress(
        DIGITS, output=tmp_path / "q.onnx", bits="w4a8", method="noise", images=32, target="ort,compact"
    )
    assert len(calls) == 1
    assert set(result.targets) == {"ort", "compact"}
    integers = [
        {
            name: value.const_value.numpy().astype("i1").tobytes()
            for name, value in written.model.graph.initializers.items()
            if name.endswith("weight_quantized") and value.const_value is not None
        }
        for written in result.targets.values()
    ]
    assert integers[0] == integers[1]
    assert integers[0]

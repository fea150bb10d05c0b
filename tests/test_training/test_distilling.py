"""Distillation of the sample network into its QDQ graph."""

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from onnxdfq.calibration.calibration import Calibration
from onnxdfq.engine import TorchGraph
from onnxdfq.training.augmentation import flipped_and_shifted, mixed
from onnxdfq.training.distillation import Distillation
from onnxdfq.training.distilling import Distilling
from onnxdfq.training.loop import Loop
from onnxdfq.training.outputs import Output, distilled_outputs
from onnxdfq.training.rates import Rates
from onnxdfq.training.student import Student
from passes.quantize.plan import QuantPlan

from ..graphs import build
from ..slow import slow
from .conftest import ORT


@pytest.mark.parametrize("features", [1.0, slow(0.0)])
def test_the_outputs_come_nearer(
    model: ir.Model, plan: QuantPlan, images: NDArray[np.float32], scheme: str, features: float
) -> None:
    distilling = Distilling(
        loop=Loop(steps=80, batch_size=16, looks=4),
        distillation=Distillation(features=features),
        rates=Rates(weight=1e-2),
        augmented=False,
    )
    found, training = distilling.train(model, plan, ORT, images, learn_scales=scheme == "free")
    assert training.stopped is None and training.best.held_back < training.curve[0].held_back
    unseen = torch.from_numpy(np.random.default_rng(1).standard_normal((256, *images.shape[1:])).astype("f4"))
    with torch.no_grad():
        exact = TorchGraph(model)(unseen)
        errors = [float(Distillation().loss(Student(model, one, ORT)(unseen), exact, [True])) for one in (plan, found)]
    assert errors[1] < 0.8 * errors[0]


def test_the_same_seed_gives_the_same_plan(model: ir.Model, plan: QuantPlan, images: NDArray[np.float32]) -> None:
    distilling = Distilling(loop=Loop(steps=8, batch_size=16, looks=2), rates=Rates(weight=1e-2))
    first, second, other = (distilling.train(model, plan, ORT, images, seed=seed)[0].fingerprint for seed in (0, 0, 1))
    assert first == second != other


def test_divergence_is_of_classes_and_squares_of_other_outputs() -> None:
    loss = Distillation(temperature=2.0)
    logits = torch.tensor([[2.0, 0.0]])
    other = torch.tensor([[0.0, 0.0]])
    p = torch.softmax(logits / 2, 1)
    wanted = 4 * float((p * (p.log() - np.log(0.5))).sum())
    assert float(loss.loss([other], [logits], [True])) == pytest.approx(wanted, rel=1e-5)
    assert float(loss.loss([other + 1], [logits + 1], [True])) == pytest.approx(wanted, rel=1e-5)  # as softmax has it
    assert float(loss.loss([other], [logits], [False])) == pytest.approx(1.0)


def test_inner_values_add_their_own_error() -> None:
    loss, x = Distillation(features=3.0), torch.randn(2, 4, 5, 5)
    same = torch.zeros(2, 3)
    assert float(loss.loss([same], [same], [True], [x], [x])) == 0
    assert float(loss.loss([same], [same], [True], [0 * x], [x])) == pytest.approx(3)
    assert float(Distillation(features=0.0).loss([same], [same], [True], [0 * x], [x])) == 0


def test_which_outputs_score_classes() -> None:
    w = np.ones((3, 4), np.float32)
    text = "(float[N, 3] x) => (float[N, 4] y) { z = MatMul(x, w) y = Softmax<axis = 1>(z) }"
    assert distilled_outputs(build(text, w=w).graph) == (Output(name="z", classes=True),)
    text = "(float[N, 3] x) => (float[N, 4] y) { y = MatMul(x, w) }"
    assert distilled_outputs(build(text, w=w).graph) == (Output(name="y", classes=True),)
    text = "(float[N, 3] x) => (int64[N] y) { z = MatMul(x, w) y = ArgMax<axis = 1, keepdims = 0>(z) }"
    assert distilled_outputs(build(text, w=w).graph) == (Output(name="z", classes=True),)
    text = "(float[N, 3, 4, 4] x) => (float[N, 2, 4, 4] y) { y = Conv(x, w) }"
    found = distilled_outputs(build(text, w=np.ones((2, 3, 1, 1), np.float32)).graph)
    assert found == (Output(name="y", classes=False),)


@pytest.mark.parametrize("channels", ["first", "last"])
def test_views_are_mirrored_and_shifted(channels: str) -> None:
    image = torch.arange(16.0 * 16).reshape(1, 1, 16, 16).repeat(32, 3, 1, 1)
    images = image if channels == "first" else image.permute(0, 2, 3, 1)
    found = flipped_and_shifted(images, torch.Generator().manual_seed(0), channels)
    assert found.shape == images.shape
    planes = found if channels == "first" else found.permute(0, 3, 1, 2)
    rising = (planes[:, 0, 8, 9] > planes[:, 0, 8, 8]).float().mean()
    assert 0.2 < float(rising) < 0.8  # about half are mirrored
    assert (planes[:, 0] == planes[:, 2]).all()


def test_a_third_of_a_batch_is_mixed() -> None:
    images = torch.arange(12.0).reshape(12, 1, 1, 1).expand(12, 3, 8, 8)
    found = mixed(images, torch.Generator().manual_seed(0))
    assert torch.equal(found[4:], images[4:]) and not torch.equal(found[:4], images[:4])
    assert found.min() >= 0 and found.max() <= 11


def test_large_models_get_fewer_steps() -> None:
    distilling = Distilling(loop=Loop(steps=600, batch_size=32))
    assert distilling.within(1e9) == distilling
    assert distilling.within(32 * 250).loop.steps == 250
    assert distilling.within(1).loop.steps == 100


@pytest.mark.parametrize("batch", [1, 5])
def test_a_model_of_one_batch_size(batch: int) -> None:
    random = np.random.default_rng(0)
    model = build(
        f"(float[{batch}, 3, 8, 8] x) => (float[{batch}, 4] y) {{ a = Conv<pads = [1, 1, 1, 1]>(x, v) b = Relu(a) "
        "c = GlobalAveragePool(b) d = Flatten(c) y = Gemm(d, w) }",
        v=random.normal(size=(4, 3, 3, 3)).astype(np.float32),
        w=random.normal(size=(4, 4)).astype(np.float32),
    )
    images = random.standard_normal((40, 3, 8, 8)).astype(np.float32)
    plan = Calibration(weight_bits=3, activation_bits=4).plan(model, images, ORT)
    found, training = Distilling(loop=Loop(steps=8, looks=2)).train(model, plan, ORT, images)
    assert training.stopped is None and [point.step for point in training.curve] == [0, 4, 8]
    assert found.weights.keys() == plan.weights.keys()

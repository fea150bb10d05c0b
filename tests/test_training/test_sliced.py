"""Trainings whose batches are cut: the sums over slices are what the whole batch comes to."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from onnxdfq.engine import TorchGraph
from onnxdfq.errors import InputError
from onnxdfq.recipe.distillation import KnowledgeDistillation
from onnxdfq.training.data import TrainingData
from onnxdfq.training.distillation import Distillation
from onnxdfq.training.distilling import Distilling
from onnxdfq.training.loop import Loop
from onnxdfq.training.rates import Rates
from onnxdfq.tuning.reconstruction import Reconstruction
from onnxdfq.tuning.tuning import Tuning
from onnxdfq.workers.slices import Slices
from passes.quantize.plan import QuantPlan

from .conftest import ORT


def test_the_losses_of_slices_add_up_to_that_of_the_batch() -> None:
    """Answers of classes, other outputs, and inner values whose energy is that of the whole batch."""
    random = torch.Generator().manual_seed(0)
    drawn = [torch.randn(10, 6, generator=random) * scale for scale in (1, 2, 30)]
    near = [each + 0.1 * torch.randn(10, 6, generator=random) for each in drawn]
    loss, classes, slices = Distillation(features=0.5), (True, False), Slices(size=10, wanted=3)
    wanted = loss.loss(near[:2], drawn[:2], classes, near[2:], drawn[2:])
    parts = [tuple(each[rows] for each in (*drawn, *near)) for rows in slices.own]
    found = list(
        loss.losses(parts, slices, teacher=lambda part: part[:3], student=lambda part: part[3:], classes=classes)
    )
    assert len(found) == 3 and float(torch.stack(found).sum()) == pytest.approx(float(wanted), rel=1e-5)


def test_slices_have_the_views_of_their_batch(model: ir.Model, images: NDArray[np.float32]) -> None:
    data, index = TrainingData(model, images, torch.device("cpu")), torch.arange(7)
    views = [torch.Generator().manual_seed(3) for _ in range(2)]
    (whole,) = data.batch(index, views[0])
    parts = data.sliced(index, views[1], Slices(size=7, wanted=3).rows)
    assert torch.equal(torch.cat([part for (part,) in parts]), whole)


@pytest.mark.parametrize("scheme", ["free"], indirect=True)
def test_distillation_in_slices_goes_the_same_way(
    model: ir.Model, plan: QuantPlan, images: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxdfq.training.distilling.resolve_precision", lambda *_: torch.float32)  # tells orders apart
    curves = []
    for count in (1, 3):
        distilling = Distilling(loop=Loop(steps=2, batch_size=8, looks=2, slices=count), rates=Rates(weight=1e-4))
        _, training = distilling.train(model, plan, ORT, images[:40], learn_scales=True)
        curves.append([[point.loss or 0.0, point.held_back] for point in training.curve])
    np.testing.assert_allclose(curves[1], curves[0], rtol=5e-3)
    assert curves[1] != curves[0], "the sums have another order"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["free"], indirect=True)
def test_blocks_tuned_in_slices_come_out_alike(model: ir.Model, plan: QuantPlan, images: NDArray[np.float32]) -> None:
    tuning = Tuning(by_block=True, learn_scales=True, reconstruction=Reconstruction(steps=10, batch_size=16, rate=0.1))
    errors = []
    for count in (1, 3):
        cut = replace(tuning, reconstruction=replace(tuning.reconstruction, slices=count))
        _, parts = cut.tune(model, plan, ORT, images)
        errors.append([part.outcome.after for part in parts])
    np.testing.assert_allclose(errors[1], errors[0], rtol=0.05)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_the_gradient_of_a_block_is_the_sum_over_its_slices(
    share: float, model: ir.Model, plan: QuantPlan, images: NDArray[np.float32]
) -> None:
    """Before and after the penalty sets in, which is counted once."""
    from onnxdfq.tuning.block import BlockData, TunedBlock
    from onnxdfq.tuning.blocks import find_blocks
    from onnxdfq.tuning.quantized import QdqGraph

    graph, block = QdqGraph(model, plan, ORT), find_blocks(model)[0]
    entry = torch.from_numpy(images)
    (goal,) = TorchGraph(model, outputs=[block.exit])(entry)
    data = BlockData(
        entry=entry, float_entry=entry, float_exit=goal.detach(), device=torch.device("cpu"), dtype=torch.float32
    )
    roundings = {name: graph.rounding(name) for name in block.weights}
    tuned, found = TunedBlock(graph, block, roundings, {}, dtype=torch.float32), []
    values = [rounding.v for rounding in tuned.roundings]
    for count in (1, 3):
        slices = Slices(size=16, wanted=count)
        losses = Reconstruction(steps=10)._losses(tuned, data, share, torch.arange(16), slices)
        loss = slices.backward(losses, values)
        found.append([loss, *(value.grad for value in values)])
    for one, other in zip(*found, strict=True):
        assert one is not None and other is not None
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


def test_what_a_batch_hangs_together_by_is_not_cut() -> None:
    with pytest.raises(InputError, match="QDrop's masks are drawn for a whole batch, and 2 slices"):
        Reconstruction(steps=1, drop=0.5, slices=2)
    with pytest.raises(InputError, match="train by the batch see all of it, and --train-slices 2 cuts it; add --stat"):
        KnowledgeDistillation(train_slices=2)
    assert KnowledgeDistillation(train_slices=2, statistics="fixed").train_slices == 2

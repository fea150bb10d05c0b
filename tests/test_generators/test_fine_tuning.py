"""A plan that learns on a generator's images while the generator learns on."""

from copy import deepcopy
from dataclasses import replace

import onnx_ir as ir
import pytest
import torch

from onnxdfq.calibration.calibration import Calibration
from onnxdfq.generators.fine_tuning import FineTuning
from onnxdfq.generators.task import GeneratorTask
from onnxdfq.targets import load_target
from onnxdfq.training.loop import Loop, Training
from onnxdfq.training.rates import Rates
from onnxdfq.training.student import Student
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.quantize.plan import QuantPlan

from .conftest import Make

ORT = load_target("ort")
RATES = Rates(weight=1e-2)


@pytest.fixture
def task(make: Make) -> GeneratorTask:
    found = make()
    found.warm_up(Loop(steps=30, batch_size=32), 2e-3, seed=0)
    return found


@pytest.fixture(scope="module")
def folded(small_model: ir.Model) -> ir.Model:
    model = small_model.clone()
    Canonicalize()(model)
    FoldBatchNorm()(model)
    return model


@pytest.fixture
def plan(task: GeneratorTask, folded: ir.Model) -> QuantPlan:
    return Calibration(weight_bits=2, activation_bits=4).plan(folded, task.images(64, 32, seed=0)[0], ORT)


def distance(model: ir.Model, plan: QuantPlan, task: GeneratorTask) -> float:
    """Of the answers, on images that trained nothing; a number added to all scores changes no answer."""
    with torch.no_grad():
        batch = task.draw(128, torch.Generator().manual_seed(99))
        (found,) = Student(model, plan, ORT)(batch.pixels)
        one, other = (scores - scores.mean(1, keepdim=True) for scores in (found, batch.outputs[0]))
        return float((one - other).square().mean() / other.square().mean())


def test_the_plan_learns_and_the_task_is_only_read(task: GeneratorTask, folded: ir.Model, plan: QuantPlan) -> None:
    before = deepcopy(task.generator.state_dict())
    tuning = FineTuning(loop=Loop(steps=60, batch_size=32), rates=RATES, label=0.0)
    found, training = tuning.train(folded, plan, ORT, task)
    assert training.best.step > 0 and distance(folded, found, task) < 0.7 * distance(folded, plan, task)
    assert all(torch.equal(before[name], tensor) for name, tensor in task.generator.state_dict().items())
    again, _ = tuning.train(folded, plan, ORT, task)
    assert again.fingerprint == found.fingerprint, "several plans start from one generator"
    other, _ = tuning.train(folded, plan, ORT, task, seed=1)
    assert other.fingerprint != found.fingerprint


def curve(tuning: FineTuning, task: GeneratorTask, folded: ir.Model, plan: QuantPlan) -> Training:
    return tuning.train(folded, plan, ORT, task)[1]


def test_both_losses_are_in_the_curve(task: GeneratorTask, folded: ir.Model, plan: QuantPlan) -> None:
    short = Loop(steps=4, batch_size=8, looks=2)
    start, *rest = curve(FineTuning(loop=short), task, folded, plan).rows()
    assert len(start) == 3 and start[1] is None
    for _, total, _, generator, student in rest:
        assert total == pytest.approx(generator + student) and min(generator, student) > 0  # type: ignore[operator, type-var]
    alone = curve(FineTuning(loop=short, generator_rate=0.0), task, folded, plan)
    assert all(len(row) == 3 for row in alone.rows())


def test_with_margins_the_generator_learns_from_both_networks(
    task: GeneratorTask, folded: ir.Model, plan: QuantPlan
) -> None:
    tuning = FineTuning(loop=Loop(steps=60, batch_size=32), rates=RATES, margins=True)
    found, training = tuning.train(folded, plan, ORT, task)
    assert len(training.rows()[-1]) == 5
    assert distance(folded, found, task) < 0.8 * distance(folded, plan, task)
    coarser = Calibration(weight_bits=2, activation_bits=4).plan(folded, 4 * task.images(64, 32, seed=0)[0], ORT)
    first, second = (
        curve(replace(tuning, loop=Loop(steps=1, batch_size=32)), task, folded, p) for p in (plan, coarser)
    )
    assert first.curve[-1].parts[0] != second.curve[-1].parts[0], "its loss depends on what is quantized how"


def test_each_of_the_students_losses_can_be_left_out(task: GeneratorTask, folded: ir.Model, plan: QuantPlan) -> None:
    """The held-back loss at the start: by parts it sums to the whole."""
    short = Loop(steps=1, batch_size=8)
    whole, label, answers = (
        curve(FineTuning(loop=short, **weights), task, folded, plan).curve[0].held_back
        for weights in ({}, {"answers": 0.0}, {"label": 0.0})
    )
    assert whole == pytest.approx(label + answers) and min(label, answers) > 0

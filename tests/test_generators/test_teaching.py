"""DAFL: its losses by their formulas, mixed images, and a student that learns on a generator."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxdfq.generators.preparing import prepared_task
from onnxdfq.generators.task import GeneratorLoss, GeneratorTask
from onnxdfq.generators.teaching import teach_on_generator
from onnxdfq.methods.dafl import Dafl
from onnxdfq.model_file.through_proto import infer_shapes
from onnxdfq.training.distillation import Distillation
from onnxdfq.training.levels import feature_levels
from onnxdfq.training.loop import Loop
from onnxdfq.training.matching import match
from onnxdfq.training.rates import FloatRates
from onnxdfq.training.teaching import Teaching

from ..graphs import plain_network

NOTHING = GeneratorLoss(label=0.0, statistics=0.0)


def task_of(model: ir.Model, loss: GeneratorLoss = NOTHING) -> GeneratorTask:
    """In float32, for bfloat16 holds the formulas to three digits."""
    build = Dafl(width=8, latent=16).generator
    levels = feature_levels(model)[-1:]
    return prepared_task(model, build, loss, method="dafl", seed=0, levels=levels, precision="float32")


def test_losses_by_formula() -> None:
    model = plain_network()
    infer_shapes(model, strict=True)
    task = task_of(model)
    batch = task.draw(32, torch.Generator().manual_seed(1))
    scores = batch.outputs[task.scores].detach().double().numpy()
    shares = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    mean = shares.mean(0)
    wanted = {
        "one_hot": -np.log(shares.max(1)).mean(),
        "entropy": (mean * np.log10(mean)).sum(),
        "activation": -batch.features[-1].detach().abs().mean(),
    }
    for name, number in wanted.items():
        assert float(task.copy(**{name: 3.0}).loss(batch).detach()) == pytest.approx(3 * float(number), rel=1e-4), name


def test_mixed_images_have_shares_of_both_labels() -> None:
    task = task_of(plain_network(), replace(NOTHING, mixing=1.0))
    found = [task.draw(16, torch.Generator().manual_seed(seed)) for seed in range(6)]
    assert all(torch.allclose(batch.labels.sum(1), torch.ones(16)) for batch in found)
    shares = {round(float(share), 3) for batch in found for share in batch.labels.flatten()}
    assert len(shares - {0.0, 1.0}) > 3
    plain = task_of(plain_network()).draw(16, torch.Generator().manual_seed(0))
    assert set(plain.labels.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("rate", [0.0, 1e-3])
def test_a_student_learns_on_a_generator(rate: float) -> None:
    teacher, student = plain_network(), plain_network()
    for value in student.graph.initializers.values():
        assert value.const_value is not None
        array = value.const_value.numpy()
        noise = np.random.default_rng(array.size).random(array.shape)
        value.const_value = ir.tensor((0.5 * array + 0.2 * noise).astype("f4"), name=value.name)
    task = task_of(teacher, replace(NOTHING, one_hot=0.05, entropy=5.0))
    before = {name: tensor.clone() for name, tensor in task.state.state_dict().items()}
    teaching = Teaching(
        loop=Loop(steps=30, batch_size=32, looks=3),
        distillation=Distillation(temperature=3.0),
        rates=FloatRates(rate=0.01, weight_decay=0.0),
    )
    training = teach_on_generator(
        teaching,
        teacher,
        student,
        match(teacher, student),
        task,
        names=frozenset(student.graph.initializers),
        generator_rate=rate,
    )
    assert training.stopped is None and training.best.held_back < 0.7 * training.curve[0].held_back
    assert len(training.curve[-1].parts) == (2 if rate else 0)
    assert all(torch.equal(before[name], tensor) for name, tensor in task.state.state_dict().items())

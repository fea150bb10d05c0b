"""A generator against the float network: its loss, and what training it comes to."""

from dataclasses import replace

import onnx_ir as ir
import pytest
import torch

from onnxdfq.generators.labels import certainty_loss, label_loss
from onnxdfq.generators.task import Batch, GeneratorLoss, GeneratorTask, agreement
from onnxdfq.training.loop import Loop

from .conftest import Make


def drawn(make: Make, **loss: float) -> tuple[float, Batch]:
    task = make(**loss)
    with torch.no_grad():
        batch = task.draw(32, torch.Generator().manual_seed(0))
        return float(task.loss(batch)), batch


def test_the_loss_is_what_the_paper_says(make: Make) -> None:
    """Eq. 5, 7 and 9: cross entropy, and squared errors of means and biased variances, mean over channels, layers."""
    (value, batch), task = drawn(make, statistics=0.1), make()
    targets, layers = task.network.targets, []
    moments = [targets.layers(part) for part in task.network.moments(batch.taps)]
    for first, second, variance in zip(*moments, targets.layers(targets.var), strict=True):  # centred at the means
        layers.append((first**2).mean() + ((second - first**2 - variance) ** 2).mean())
    statistics = torch.stack(layers).mean()
    label = label_loss(batch.outputs[0], batch.labels)
    assert value == pytest.approx(float(label + 0.1 * statistics), rel=1e-4)


def test_each_part_can_be_left_out(make: Make) -> None:
    whole, batch = drawn(make)
    label = float(label_loss(batch.outputs[0], batch.labels))
    assert drawn(make, statistics=0.0)[0] == pytest.approx(label, rel=1e-5)
    assert drawn(make, label=0.0)[0] == pytest.approx(whole - label, rel=1e-4)
    assert drawn(make, relative=True)[0] != pytest.approx(whole)


def test_labels_may_count_by_hardness_or_certainty(make: Make) -> None:
    _, batch = drawn(make)
    scores, labels = batch.outputs[0], batch.labels
    hard = float(label_loss(scores, labels, hardness=1.5))
    assert drawn(make, statistics=0.0, hardness=1.5)[0] == pytest.approx(hard, rel=1e-5)
    assert 0 <= batch.wanted.min() < 0.2 < 0.8 < batch.wanted.max() <= 1
    sure = float(certainty_loss(scores, labels, 0.6 + 0.4 * batch.wanted))
    assert drawn(make, statistics=0.0, certainty=0.6)[0] == pytest.approx(sure, rel=1e-5)


def test_a_batch_that_is_good_enough_trains_no_more(make: Make) -> None:
    task = make(stop_at=0.9)
    with torch.no_grad():
        batch = task.draw(32, torch.Generator().manual_seed(0))
    answered = torch.nn.functional.one_hot(batch.outputs[0].argmax(1), 5).float()
    good, bad = replace(batch, labels=answered), replace(batch, labels=answered.roll(1, 1))
    assert agreement(batch.outputs[0], answered) == 1.0 and float(task.loss(good)) == 0.0
    assert agreement(batch.outputs[0], bad.labels) == 0.0 and float(task.loss(bad)) > 0
    assert float(make().loss(good)) > 0


def test_a_generator_learns_labels_and_statistics(make: Make) -> None:
    def figures(task: GeneratorTask) -> tuple[float, float]:
        with torch.no_grad():
            batch = task.draw(128, torch.Generator().manual_seed(7))
            distance = task.network.targets.distance(*task.network.moments(batch.taps))
        return agreement(batch.outputs[0], batch.labels), float(distance)

    start = figures(make())
    labels, statistics = make(statistics=0.0), make(label=0.0, relative=True)
    training = labels.warm_up(Loop(steps=80, batch_size=32), 2e-3, seed=0)
    statistics.warm_up(Loop(steps=80, batch_size=32), 2e-3, seed=0)
    assert training.best.held_back < 0.7 * training.curve[0].held_back
    assert start[0] < 0.3 < 0.5 < figures(labels)[0]
    assert figures(statistics)[1] < 0.6 * start[1] < figures(labels)[1]


def test_images_follow_from_the_seed_and_lie_in_the_range(make: Make) -> None:
    task = make()
    pixels, labels = task.images(20, 8, seed=3)
    fewer, some = task.images(9, 8, seed=3)
    assert pixels.shape == (20, 1, 8, 8) and labels.shape == (20, 5)
    assert (fewer == pixels[:9]).all() and (some == labels[:9]).all()
    assert (task.images(9, 8, seed=4)[0] != fewer).any()
    low, high = (float(end) for end in (task.scale.low[0], task.scale.high[0]))
    standardised = task.scale.standardised(pixels)
    assert low - 1e-4 <= standardised.min() and standardised.max() <= high + 1e-4


def test_the_first_weights_follow_from_the_seed_alone(make: Make) -> None:
    torch.manual_seed(5)
    one, state = make(), torch.get_rng_state()
    torch.manual_seed(6)
    other = make()
    for a, b in zip(one.generator.parameters(), other.generator.parameters(), strict=True):
        assert torch.equal(a, b)
    torch.manual_seed(5)
    assert torch.equal(state, torch.get_rng_state()), "torch's own numbers are left alone"


def test_loss_settings_are_the_papers() -> None:
    assert GeneratorLoss() == GeneratorLoss(label=1.0, statistics=0.1, relative=False, stop_at=None)


def test_the_model_is_only_read(make: Make, small_model: ir.Model) -> None:
    before = {name: value.const_value.numpy().copy() for name, value in small_model.graph.initializers.items()}  # type: ignore[union-attr]
    make().warm_up(Loop(steps=2, batch_size=8), 1e-2, seed=0)
    after = {name: value.const_value.numpy() for name, value in small_model.graph.initializers.items()}  # type: ignore[union-attr]
    assert all((before[name] == after[name]).all() for name in before)

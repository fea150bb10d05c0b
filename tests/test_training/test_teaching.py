"""Distillation of a float network into another."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from onnxdfq.errors import DataError
from onnxdfq.images.shards import Shards
from onnxdfq.model_file import main_input
from onnxdfq.training.data import TrainingData
from onnxdfq.training.loop import Loop, Training, _batches
from onnxdfq.training.matching import match
from onnxdfq.training.rates import FloatRates
from onnxdfq.training.teaching import Teaching

from ..graphs import natural_images, plain_network
from .test_float_student import arrays

IMAGES = natural_images(80, 1, 8)
LOOP = Loop(steps=40, batch_size=16, optimizer="sgd", looks=4)


@pytest.fixture
def fresh() -> ir.Model:
    """The network of `plain_network` as it is before any training, from other random numbers."""
    model, random = plain_network(), np.random.default_rng(5)
    for node in model.graph:
        for slot, value in enumerate(node.inputs[1:], 1):
            assert value is not None and value.const_value is not None
            shape = value.const_value.numpy().shape
            if node.op_type == "BatchNormalization":
                array = np.full(shape, float(slot in (1, 4)))
            else:
                array = random.standard_normal(shape) * (2 / np.prod(shape[1:] or 1)) ** 0.5
            value.const_value = ir.tensor(array.astype("f4"), name=value.name)
    return model


def taught(student: ir.Model, images: NDArray[np.float32] | Shards = IMAGES, **given: object) -> Training:
    teacher = plain_network()
    settings = {"loop": LOOP, "augmented": False, "rates": FloatRates(rate=0.02)} | given
    teaching = Teaching(**settings)  # type: ignore[arg-type]
    names = frozenset(student.graph.initializers)
    return teaching.train(teacher, student, match(teacher, student), images, names=names)


def test_the_answers_come_nearer(fresh: ir.Model) -> None:
    before = arrays(fresh)
    training = taught(fresh)
    assert training.stopped is None and training.best.step == 40
    assert training.best.held_back < 0.5 * training.curve[0].held_back
    assert [name for name, array in arrays(fresh).items() if np.array_equal(array, before[name])] == []


def test_the_same_seed_gives_the_same_numbers(fresh: ir.Model) -> None:
    other = fresh.clone()
    for model in (fresh, other):
        taught(model, loop=Loop(steps=8, batch_size=16, optimizer="sgd", looks=2), augmented=True)
    for name, array in arrays(fresh).items():
        np.testing.assert_array_equal(array, arrays(other)[name])


def test_a_loss_that_is_no_number_leaves_the_last_good_state(fresh: ir.Model) -> None:
    training = taught(fresh, rates=FloatRates(rate=1e30))
    assert training.stopped is not None and "the loss was no number" in training.stopped
    assert all(np.isfinite(array).all() for array in arrays(fresh).values())


def sharded(folder: Path, sizes: tuple[int, ...]) -> Shards:
    starts = np.cumsum((0, *sizes))
    for part, size in enumerate(sizes):
        np.savez(folder / f"{part}.npz", images=IMAGES[starts[part] : starts[part] + size])
    return Shards.of(sorted(folder.iterdir()), main_input(plain_network()))


def test_batches_of_files_are_those_in_memory(tmp_path: Path) -> None:
    shards, model, device = sharded(tmp_path, (30, 31, 19)), plain_network(), torch.device("cpu")
    streamed, whole = (TrainingData(model, source, device) for source in (shards, IMAGES))
    assert sum(streamed.parts) == len(whole.trains) == 72 and len(streamed.parts) == 3
    assert torch.equal(streamed.trains, whole.trains) and torch.equal(streamed.held, whole.held)
    order = _batches(streamed.parts, 8, torch.Generator().manual_seed(3))
    for step in range(40):
        index = streamed.trains[next(order)]
        views = [torch.Generator().manual_seed(step) for _ in range(2)]
        for one, other in zip(streamed.batch(index, views[0]), whole.batch(index, views[1]), strict=True):
            assert torch.equal(one, other)
    held = torch.cat([streamed.batch(part, None)[0] for part in streamed.batches(streamed.held, 4)])
    np.testing.assert_array_equal(held.numpy(), IMAGES[::10])


def test_one_file_is_in_memory_at_a_time(tmp_path: Path, fresh: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = sharded(tmp_path, (20, 20, 20, 20))
    opened: list[int] = []
    load = TrainingData._load

    def watched(self: TrainingData, part: int) -> None:
        load(self, part)
        assert {len(array) for array in self._arrays.values()} == {20}
        if not opened or opened[-1] != part:
            opened.append(part)

    monkeypatch.setattr(TrainingData, "_load", watched)
    training = taught(fresh, shards, loop=Loop(steps=8, batch_size=9, optimizer="sgd", looks=1))
    assert training.stopped is None and len(training.curve) == 2
    # two looks at all, and a round of eight batches, two of each file behind one another
    assert len(opened) <= 4 + 4 + 4 + 1 and set(opened) == {0, 1, 2, 3}


def test_training_by_files_is_repeatable_and_learns(tmp_path: Path, fresh: ir.Model) -> None:
    other, shards = fresh.clone(), sharded(tmp_path, (40, 40))
    training = taught(fresh, shards)
    assert training.best.held_back < 0.5 * training.curve[0].held_back
    taught(other, shards)
    for name, array in arrays(fresh).items():
        np.testing.assert_array_equal(array, arrays(other)[name])


def test_too_few_images(fresh: ir.Model) -> None:
    with pytest.raises(DataError, match="2 samples at least"):
        taught(fresh, IMAGES[:1])

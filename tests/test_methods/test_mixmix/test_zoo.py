"""A zoo: each model's own view of the same images, and no more of them in memory than look at a batch."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from onnxdfq.errors import DfqError
from onnxdfq.generators.zoo import Zoo, zoo_of
from onnxdfq.model_file import main_input
from onnxdfq.recipe.zoo import Member
from onnxdfq.synthesis.view import View, resized

from ...graphs import natural_images
from .conftest import BYTES, STANDARD, classifier, view_of

Saved = Callable[..., Path]


def test_two_normalizations_of_one_network_see_the_same_images() -> None:
    """One network remembers standardised pixels, one bytes: each finds what it remembers in the same images."""
    images = torch.from_numpy(natural_images(128, 1, 8)).clamp(-1.8, 2.2)
    standard, of_bytes = view_of(classifier()), view_of(classifier(scale=63.75, shift=114.75), BYTES)
    assert torch.allclose(standard.scale.to_model(images), images, atol=1e-5)
    assert torch.allclose(of_bytes.scale.to_model(images), 255 * (0.45 + 0.25 * images), atol=1e-3)
    for view in (standard, of_bytes):
        taps, _ = view(images)
        assert float(view.network.targets.distance(*view.network.moments(taps))) < 0.01


def test_each_network_gets_its_own_size() -> None:
    images = torch.from_numpy(natural_images(6, 1, 8))
    view = view_of(classifier(side=12))
    _, scores = view(images)
    _, expected = view(resized(images, (12, 12)))
    assert scores is not None and expected is not None and scores.shape == (6, 5)
    assert torch.equal(scores, expected)


def test_scores_come_in_the_common_order_of_classes(saved: Saved) -> None:
    path, order = saved("a"), (3, 0, 4, 1, 2)
    plain, ordered = (
        zoo_of([Member(path=path, order=given)], held=1, device="cpu").views([0])[0] for given in (None, order)
    )
    images = torch.from_numpy(natural_images(4, 1, 8))
    (_, own), (_, common) = plain(images), ordered(images)
    assert own is not None and common is not None
    for place, number in enumerate(order):  # the zoo's class k is the model's number order[k]
        assert torch.equal(common[:, place], own[:, number])


def test_a_network_of_one_batch_size_looks_at_any_number() -> None:
    images = torch.from_numpy(natural_images(6, 1, 8))
    _, scores = view_of(classifier(batch=4))(images)
    _, expected = view_of(classifier(batch=4))(images.roll(2, 0))
    assert scores is not None and expected is not None and scores.shape == (6, 5)
    assert torch.allclose(scores, expected.roll(-2, 0), atol=1e-5)


@pytest.mark.slow
def test_no_more_are_in_memory_than_look_at_a_batch() -> None:
    living: list[weakref.ref[View]] = []
    loaded: list[int] = []
    most, models = 0, [classifier(side=6 + 2 * place) for place in range(5)]

    def load(place: int) -> View:
        nonlocal most
        gc.collect()
        view = view_of(models[place])
        loaded.append(place)
        living.append(weakref.ref(view))
        most = max(most, sum(ref() is not None for ref in living))
        return view

    zoo = Zoo([lambda place=place: load(place) for place in range(5)], 2)  # type: ignore[misc]
    found = zoo.checked(main_input(models[0]))
    assert len(found) == 5 and loaded == [0, 1, 2, 3, 4]
    for places in ([0, 3], [3, 4], [3, 4], [1, 2]):
        assert [view.network.planes[1] for view in zoo.views(places)] == [6 + 2 * place for place in places]
    assert most == 2
    assert loaded[5:] == [0, 3, 4, 1, 2]  # those that stay are not loaded again


def test_a_zoo_that_fits_into_memory_is_loaded_once(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxdfq.generators import zoo as module

    opened: list[Path] = []
    opening = module.Opening

    def counted(path: Path) -> object:
        opened.append(path)
        return opening(path)

    monkeypatch.setattr(module, "Opening", counted)
    paths = [saved("a"), saved("b", side=12)]
    zoo = zoo_of([Member(path=path) for path in paths], held=3, device="cpu")
    zoo.checked(main_input(classifier()))
    zoo.views([0, 1])
    assert opened == paths and zoo.held == 2


def test_the_range_of_a_member_is_told_or_estimated(saved: Saved) -> None:
    members = [
        Member(path=saved("told", norm=STANDARD)),
        Member(path=saved("given", norm=BYTES), normalize=STANDARD),  # what is given counts
        Member(path=saved("silent", norm=None)),
    ]
    zoo = zoo_of(members, held=1, device="cpu")
    scales = [zoo.views([place])[0].scale for place in range(3)]
    assert [scale.source.split(" ")[0] for scale in scales] == ["normalization", "normalization", "estimated"]
    assert np.allclose(scales[0].std, scales[1].std)
    assert scales[2].std[0] == pytest.approx(1, rel=0.4)  # of images of deviation 1


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"classes": 7}, r"The zoo disagrees on classes: a.onnx scores 5 and b.onnx 7"),
        ({"channels": 3}, r"The zoo disagrees on channels: b.onnx takes 3, and images are made of 1"),
    ],
)
def test_members_that_disagree(other: dict[str, int], message: str, saved: Saved) -> None:
    zoo = zoo_of([Member(path=saved("a")), Member(path=saved("b", **other))], held=2, device="cpu")
    with pytest.raises(DfqError, match=message):
        zoo.checked(main_input(classifier()))


def test_an_order_of_other_length_and_a_normalization_of_other_channels(saved: Saved) -> None:
    path = saved("a", norm=None)
    with pytest.raises(DfqError, match=r"a\.onnx scores 5 classes, and its order of labels has 3"):
        zoo_of([Member(path=path, order=(2, 0, 1))], held=1, device="cpu").checked(main_input(classifier()))
    with pytest.raises(DfqError, match=r"a\.onnx: the normalization has 3 channels"):
        zoo_of([Member(path=path, normalize="imagenet")], held=1, device="cpu").checked(main_input(classifier()))

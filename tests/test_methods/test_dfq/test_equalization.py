"""All of DFQ's edits of the float graph together."""

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxdfq.calibration.thresholds import weight_thresholds
from onnxdfq.engine import TorchGraph
from onnxdfq.methods.dfq.equalization import equalize
from passes.moments.moments import Moments, activation_moments

from ...graphs import build

RNG = np.random.default_rng(10)


def network(bound: float) -> ir.Model:
    """Channels of very different scale, one of high bias, a ReLU6 in between."""
    text = (
        "(float[N,2,6,6] x) => (float[N,3,6,6] y) { a = Conv (x, v, b) r = Relu (a) "
        "d = Conv <group = 8, kernel_shape = [1, 1]> (r, w) e = Clip (d, zero, bound) y = Conv (e, u) }"
    )
    weights = {
        "v": RNG.normal(size=(8, 2, 1, 1)) * np.geomspace(0.01, 1, 8).reshape(8, 1, 1, 1),
        "b": np.array([9, 0, 0, 0, 0, 0, 0, 0]),
        "w": RNG.normal(size=(8, 1, 1, 1)),
        "u": RNG.normal(size=(3, 8, 1, 1)),
        "zero": np.float32(0),
        "bound": np.float32(bound),
    }
    return build(text, **{name: np.asarray(array, np.float32) for name, array in weights.items()})


def known_of(model: ir.Model) -> dict[str, Moments]:
    image = {"x": Moments(mean=np.zeros(2), std=np.ones(2))}
    found = activation_moments(model, image)
    return image | {name: found[name] for name in ("a", "d")}


def share_of_others(model: ir.Model, x: torch.Tensor, wanted: torch.Tensor) -> float:
    """Of numbers that are others than before: absorbed biases leave 0.135 % of a channel below them."""
    same = torch.isclose(TorchGraph(model)(x)[0], wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    return 1 - float(same.float().mean())


@pytest.mark.parametrize("aligned_bits", [None, 4])
def test_the_function_and_what_is_known_of_it_stay_true(aligned_bits: int | None) -> None:
    model = network(bound=100)
    x = torch.from_numpy(RNG.normal(size=(64, 2, 6, 6)).astype("f4"))
    wanted = TorchGraph(model)(x)[0]
    found = equalize(model, known_of(model), aligned_bits=aligned_bits)
    assert (found.lifted_clips, found.equalized_layers, found.absorbed_biases) == (("Clip_e",), 2, 2)
    assert share_of_others(model, x, wanted) < 0.005
    a, d = TorchGraph(model, outputs=["a", "d"])(x)
    for name, value in (("a", a), ("d", d)):
        flat = value.transpose(0, 1).flatten(1)
        np.testing.assert_allclose(found.moments[name].std, flat.std(dim=1).numpy(), rtol=0.1)
        np.testing.assert_allclose(
            found.moments[name].mean, flat.mean(dim=1).numpy(), atol=0.2 * float(flat.std(dim=1).max())
        )
    magnitude = np.abs(model.graph.initializers["v"].const_value.numpy()).reshape(8, 2)  # type: ignore[union-attr]
    assert magnitude.max(axis=1).max() / magnitude.max(axis=1).min() < 40  # it was a hundredfold
    if aligned_bits is not None:
        weight = model.graph.initializers["v"].const_value.numpy()  # type: ignore[union-attr]
        free = weight_thresholds(weight, aligned_bits, "free", axis=0)
        np.testing.assert_allclose(np.log2(free), np.rint(np.log2(free)), atol=1e-5)


def test_a_bound_that_cuts_stays_and_ends_the_path() -> None:
    model = network(bound=0.5)
    x = torch.from_numpy(RNG.normal(size=(64, 2, 6, 6)).astype("f4"))
    wanted = TorchGraph(model)(x)[0]
    found = equalize(model, known_of(model), aligned_bits=None)
    assert (found.lifted_clips, found.equalized_layers) == ((), 1)
    assert share_of_others(model, x, wanted) < 0.005


def test_without_moments_only_weights_are_equalized() -> None:
    found = equalize(network(bound=100), {}, aligned_bits=None)
    assert (found.moments, found.lifted_clips, found.equalized_layers, found.absorbed_biases) == ({}, (), 1, 0)

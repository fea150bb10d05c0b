"""GENIE: a generator for each batch, and a network whose strided convolutions swing."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxdfq.engine import TorchGraph
from onnxdfq.errors import InputError, NoBatchNorm
from onnxdfq.images.normalization import Normalization
from onnxdfq.methods import Genie
from onnxdfq.synthesis.network import TappedNetwork
from onnxdfq.synthesis.swing import Swing

from ..graphs import build, two_layers

HALF = Normalization(mean=(0.5,), std=(0.25,))
QUICK = Genie(steps=40, batch_size=8, latent=16, width=8)
STRIDED = """(float[N,1,6,6] x) => (float[N,1,3,3] y) {
    u = Conv (x, one)
    y = Conv <strides=[2,2]> (u, one)
}"""


def swung(seed: int) -> torch.Tensor:
    """What a strided convolution of weight 1 reads of the numbers from 0 to 35, (3, 3)."""
    swing = Swing(build(STRIDED, one=np.ones((1, 1, 1, 1), np.float32)))
    swing.draw(torch.Generator().manual_seed(seed))
    graph = TorchGraph(swing.model, replacements=swing.replacements)
    return graph(torch.arange(36.0).view(1, 1, 6, 6))[0][0, 0]


def test_a_strided_convolution_reads_all_pixels_in_time() -> None:
    padded = torch.nn.functional.pad(torch.arange(36.0).view(1, 1, 6, 6), (1, 1, 1, 1), mode="reflect")[0, 0]
    crops = [padded[top : top + 6 : 2, left : left + 6 : 2] for top in range(3) for left in range(3)]
    found = [swung(seed) for seed in range(40)]
    seen = [[torch.equal(one, crop) for crop in crops].index(True) for one in found]
    assert set(seen) == set(range(9))
    still = Swing(build(STRIDED, one=np.ones((1, 1, 1, 1), np.float32)))
    (plain,) = TorchGraph(still.model, replacements=still.replacements)(torch.arange(36.0).view(1, 1, 6, 6))
    assert torch.equal(plain[0, 0], crops[4])  # in the middle, until it is drawn


def test_an_axis_of_one_pixel_stays() -> None:
    swing = Swing(build(STRIDED.replace("6,6", "1,6").replace("3,3", "1,3"), one=np.ones((1, 1, 1, 1), np.float32)))
    graph, x = TorchGraph(swing.model, replacements=swing.replacements), torch.arange(6.0).view(1, 1, 1, 6)
    random = torch.Generator().manual_seed(0)
    found = set()
    for _ in range(20):
        swing.draw(random)
        found.add(tuple(graph(x)[0].flatten().tolist()))
    assert found == {(0.0, 2.0, 4.0), (1.0, 3.0, 5.0), (1.0, 1.0, 3.0)}


def test_a_network_of_no_strides_is_the_same() -> None:
    model = two_layers()
    swing = Swing(model)
    assert not swing.replacements and len(swing.model.graph) == len(model.graph)


def distance(model: ir.Model, method: Genie) -> float:
    """Of the statistics of 16 images from those that the model remembers."""
    images = method.synthesize(model, count=16, seed=0, normalization=HALF)
    network = TappedNetwork(model, method="test", device="cpu", precision="float32")
    taps, _ = network.forward(network.given(torch.from_numpy(images.pixels)))
    return float(network.targets.distance(*network.moments(taps)))


def test_images_come_to_the_statistics(small_model: ir.Model) -> None:
    begun, done = (distance(small_model, replace(QUICK, steps=steps)) for steps in (1, 40))
    assert done < 0.6 * begun


@pytest.mark.parametrize("method", [QUICK, replace(QUICK, swing=False), replace(QUICK, relative=False)])
def test_images_follow_from_the_seed(small_model: ir.Model, method: Genie) -> None:
    method = replace(method, steps=2)
    first, again, other = (
        method.synthesize(small_model, count=10, seed=seed, normalization=HALF).pixels for seed in (0, 0, 1)
    )
    assert first.shape[0] == 10 and np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(  # fewer are the first of more
        method.synthesize(small_model, count=8, seed=0, normalization=HALF).pixels, first[:8]
    )


def test_settings_are_held_to_their_bounds() -> None:
    with pytest.raises(InputError, match="latent"):
        Genie(latent=0)
    with pytest.raises(InputError, match="precision"):
        Genie(precision="float8")  # type: ignore[arg-type]


def test_a_network_without_statistics_is_refused() -> None:
    with pytest.raises(NoBatchNorm, match="genie"):
        QUICK.synthesize(two_layers(), count=1, seed=0)

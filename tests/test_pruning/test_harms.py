"""The harm of each group: the same whether the network runs from its start or from the frontier."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from onnxdfq.engine import TorchGraph
from onnxdfq.pruning.covariances import input_covariances
from onnxdfq.pruning.harms import channel_options, measure_harms, one_group, without_channels
from passes.prune.channels import ChannelChoice

Build = Callable[..., ir.Model]
RANDOM = np.random.default_rng(5)


def rand(*shape: int) -> NDArray[np.float32]:
    return RANDOM.normal(size=shape).astype(np.float32)


@pytest.fixture
def model(build: Build) -> ir.Model:
    """Two outputs, of which the first is computed before the second's layers."""
    return build(
        """(float[N,3,6,6] x) => (float[N,2,6,6] y, float[N,5] z) {
        a = Conv <pads=[1,1,1,1]> (x, w) r = Relu (a) y = Conv (r, u) b = Conv <strides=[2,2]> (r, v)
        n = BatchNormalization (b, s, t, t, o) q = Relu (n) p = GlobalAveragePool (q) f = Flatten (p)
        z = Gemm (f, k, c) }""",
        w=rand(16, 3, 3, 3), u=rand(2, 16, 1, 1), v=rand(24, 16, 1, 1), s=rand(24), t=rand(24),
        o=np.ones(24, np.float32), k=rand(24, 5), c=rand(5),
    )  # fmt: skip


def test_the_harm_is_that_of_the_whole_network(model: ir.Model) -> None:
    choice = ChannelChoice(model, multiple=8)
    x = rand(40, 3, 6, 6)
    found = measure_harms(model, choice, x)
    assert [[one.removed for one in each] for each in found] == [[0, 8], [0], [0, 8, 16], [0]]
    assert [[one.removed for one in each] for each in channel_options(choice)] == [
        [one.removed for one in each] for each in found
    ]
    used = torch.from_numpy(x[:32])
    with torch.no_grad():
        wanted = TorchGraph(model)(used)
        for number in (0, 2):
            for option in found[number][1:]:
                pruned = without_channels(model, one_group(choice, number, option.ratio))
                outputs = TorchGraph(pruned)(used)
                each = [
                    float((one - other).square().sum() / one.square().sum())
                    for one, other in zip(wanted, outputs, strict=True)
                ]
                assert option.harm == pytest.approx(sum(each) / 2, rel=1e-3) and option.harm > 0
                assert (each[0] == 0) == (number == 2)


def test_covariances_are_those_of_what_layers_read(model: ir.Model) -> None:
    x = rand(40, 3, 6, 6)
    found = input_covariances(model, x)
    assert {name: array.shape for name, array in found.items()} == {
        "Conv_a": (1, 27, 27), "Conv_y": (1, 16, 16), "Conv_b": (1, 16, 16), "Gemm_z": (1, 24, 24),
    }  # fmt: skip
    with torch.no_grad():
        (read, features) = TorchGraph(model, outputs=["r", "f"])(torch.from_numpy(x))
    strided = read[:, :, ::2, ::2].permute(1, 0, 2, 3).flatten(1).numpy()
    np.testing.assert_allclose(found["Conv_b"][0], np.cov(strided, bias=True), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found["Gemm_z"][0], np.cov(features.T.numpy(), bias=True), rtol=1e-3, atol=1e-4)

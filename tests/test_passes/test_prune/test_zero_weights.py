"""ZeroWeights with the masks of a share and of a pattern."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from passes.prune.plan import CannotPrune
from passes.prune.zero_weights import ZeroWeights, smallest_weights, two_of_four

Build = Callable[..., ir.Model]
TEXT = """(float[N,4,4,4] x) => (float[N,3] y) {
    a = Conv (x, w) d = Conv <group=8> (a, k) p = GlobalAveragePool (d) f = Flatten (p) y = Gemm <transB=1> (f, v) }"""


def network(build: Build) -> ir.Model:
    random = np.random.default_rng(0)

    def rand(*shape: int) -> NDArray[np.float32]:
        return random.normal(size=shape).astype(np.float32)

    return build(TEXT, w=rand(8, 4, 2, 2), k=rand(8, 1, 2, 2), v=rand(3, 8))


def weights(model: ir.Model) -> dict[str, NDArray[np.float32]]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


def test_the_smallest_of_each_layer_go(build: Build) -> None:
    model = network(build)
    before = {name: array.copy() for name, array in weights(model).items()}
    ZeroWeights(smallest_weights(model, sparsity=0.25))(model)
    for name, array in weights(model).items():
        gone = array == 0
        assert gone.sum() == round(0.25 * array.size)
        assert np.abs(before[name][gone]).max() < np.abs(array[~gone]).min()
        assert np.array_equal(array[~gone], before[name][~gone])


def test_equal_weights_go_as_many_as_asked(build: Build) -> None:
    model = build("(float[N,4] x) => (float[N,4] y) { y = Gemm (x, w) }", w=np.ones((4, 4), np.float32))
    ZeroWeights(smallest_weights(model, sparsity=0.5))(model)
    assert (weights(model)["w"] == 0).sum() == 8


def test_two_of_four_neighbours_stay(build: Build) -> None:
    model = network(build)
    before = weights(model)["w"].copy()
    plan = two_of_four(model)
    ZeroWeights(plan)(model)
    found = weights(model)
    blocks = found["w"].transpose(0, 2, 3, 1).reshape(-1, 4)
    assert ((blocks != 0).sum(axis=1) == 2).all()
    rows = np.abs(before).transpose(0, 2, 3, 1).reshape(-1, 4)
    assert np.array_equal(np.sort(np.abs(blocks), axis=1)[:, 2:], np.sort(rows, axis=1)[:, 2:])
    assert ((found["v"].reshape(3, 2, 4) != 0).sum(axis=2) == 2).all()
    assert plan.skipped == {"Conv_d": "its 1 input channels are no multiple of 4"} and (found["k"] != 0).all()


def test_no_layer_is_left_empty(build: Build) -> None:
    with pytest.raises(CannotPrune, match=r"A sparsity of 0.99 leaves no weight in Conv 'Conv_d', which has 32"):
        smallest_weights(network(build), sparsity=0.99)

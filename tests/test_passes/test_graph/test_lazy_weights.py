"""Weights that are not in memory: what asks about them does not read them, and edits wait until somebody asks."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.graph.editing import changed, constant_value, is_constant

RNG = np.random.default_rng(0)
BODY = "(float[N,2,4,4] x) => (float[N,3,4,4] y) { c = Conv(x, w) y = BatchNormalization(c, g, b, m, v) }"


def lazy(value: ir.Value) -> list[int]:
    """Makes a constant one that is made when somebody asks. How often that was, as the list's length."""
    tensor, asked = value.const_value, []
    assert tensor is not None

    def make() -> ir.TensorProtocol:
        asked.append(1)
        return tensor

    value.const_value = ir.LazyTensor(make, tensor.dtype, tensor.shape, name=value.name)  # type: ignore[arg-type]
    return asked


@pytest.fixture
def network(build: Callable[..., ir.Model]) -> ir.Model:
    norm = {name: RNG.uniform(0.5, 1.5, 3).astype(np.float32) for name in "gbmv"}
    return build(BODY, w=RNG.normal(size=(3, 2, 1, 1)).astype(np.float32), **norm)


def test_whether_a_value_is_a_constant_is_told_without_reading_it(network: ir.Model) -> None:
    weight = network.graph.initializers["w"]
    asked = lazy(weight)
    assert is_constant(weight) and not is_constant(network.graph.inputs[0]) and not is_constant(None)
    assert not asked


def test_folding_leaves_a_weight_where_it_is_and_gives_the_same(network: ir.Model) -> None:
    other = network.clone()
    asked = lazy(other.graph.initializers["w"])
    for model in (network, other):
        FoldBatchNorm()(model)
        assert [node.op_type for node in model.graph] == ["Conv"]
    weights = [model.graph.node(0).inputs[1] for model in (network, other)]
    assert isinstance(weights[1].const_value, ir.LazyTensor)  # type: ignore[union-attr]
    before = len(asked)
    np.testing.assert_array_equal(*map(constant_value, weights))  # type: ignore[arg-type]
    assert len(asked) == before + 1


def test_a_change_of_a_weight_in_memory_is_made_at_once(network: ir.Model) -> None:
    weight = network.graph.initializers["w"]
    before = constant_value(weight)
    found = changed(weight, lambda array: array.astype(np.float64) * 2)
    assert isinstance(found, ir.Tensor) and found.dtype == ir.DataType.FLOAT
    np.testing.assert_array_equal(found.numpy(), 2 * before)  # type: ignore[operator]
    with pytest.raises(ValueError, match="is no constant"):
        changed(network.graph.inputs[0], np.square)

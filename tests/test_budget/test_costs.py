"""What layers cost, by hand; budgets as text."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from onnxdfq.budget.costs import Layer, bit_operations, read_layers, size_bits
from onnxdfq.errors import InputError
from onnxdfq.recipe.budget import OF_CHANNELS, Budget
from onnxdfq.targets import load_target

ORT = load_target("ort")


def test_two_layers_by_hand(two_layers: ir.Model) -> None:
    conv, gemm = read_layers(two_layers, ORT)
    assert conv == Layer(node="Conv_h", weight="w", source="x", weights=90, scales=5, macs=90 * 16)
    assert gemm == Layer(node="Gemm_y", weight="v", source="p", weights=15, scales=3, macs=15)
    bits = {"Conv_h": 4, "Gemm_y": 8}
    assert size_bits((conv, gemm), bits) == 90 * 4 + 15 * 8 + 8 * 32
    assert bit_operations((conv, gemm), bits, {"x": 8, "p": 6}) == 1440 * 4 * 8 + 15 * 8 * 6
    assert [layer.scales for layer in read_layers(two_layers, replace(ORT, per_channel_weights=False))] == [1, 1]


@pytest.mark.parametrize(
    ("node", "weight", "output", "macs"),
    [
        ("Conv <kernel_shape=[1,1], strides=[2,2], group=2> (x, w)", (6, 2, 1, 1), "6,3,3", 6 * 9 * 2),
        ("ConvTranspose <kernel_shape=[2,2], strides=[2,2], group=2> (x, w)", (4, 3, 2, 2), "6,12,12", 4 * 36 * 12),
        ("MatMul (x, w)", (6, 5), "4,6,5", 4 * 6 * 5 * 6),
        ("MatMul (w, x)", (5, 6), "4,5,6", 4 * 5 * 6 * 6),
        ("MatMul (x, w)", (6,), "4,6", 4 * 6 * 6),
    ],
)
def test_multiplications_of_other_operators(
    build: Callable[..., ir.Model], node: str, weight: tuple[int, ...], output: str, macs: int
) -> None:
    model = build(f"(float[N,4,6,6] x) => (float[N,{output}] y) {{ y = {node} }}", w=np.ones(weight, "f4"))
    (layer,) = read_layers(model, ORT)
    assert layer.macs == macs
    assert layer.weights == np.prod(weight)


@pytest.mark.parametrize(
    ("text", "kind", "limit"),
    [
        ("size=0.5MB", "size", 500_000.0),
        ("size=512KiB", "size", 2.0**19),
        ("SIZE=100b", "size", 100.0),
        (" bops=1.2G ", "bops", 1.2e9),
        ("bops=5000", "bops", 5000.0),
    ],
)
def test_budgets_are_read(text: str, kind: str, limit: float) -> None:
    assert Budget.parse(text) == Budget(kind=kind, limit=limit)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["0.5MB", "size=0.5", "size=MB", "size=-1MB", "bops=1GB", "flops=1G", "size=1M", ""])
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"is not of the form size=0\.5MB"):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("macs=20M", Budget(kind="macs", limit=2e7)),
        ("macs=0.8", Budget(kind="macs", limit=0.8, share=True)),
        ("size=.5", Budget(kind="size", limit=0.5, share=True)),
        ("latency=500us", Budget(kind="latency", limit=0.5)),
        ("latency=0.9", Budget(kind="latency", limit=0.9, share=True)),
    ],
)
def test_budgets_of_channels_may_be_shares(text: str, budget: Budget) -> None:
    assert Budget.parse(text, OF_CHANNELS, shares=True) == budget
    assert Budget.parse(str(budget), OF_CHANNELS, shares=True) == budget
    assert budget.of(100.0) == (Budget(kind=budget.kind, limit=100 * budget.limit) if budget.share else budget)


@pytest.mark.parametrize("text", ["macs=20MB", "latency=5", "bops=1G", "size=1", "macs=-0.5", "macs="])
def test_what_is_no_budget_of_channels_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="nor a share of what the model costs"):
        Budget.parse(text, OF_CHANNELS, shares=True)


def test_the_least_possible_is_rounded_up_so_that_it_can_be_asked_for() -> None:
    size = Budget(kind="size", limit=45_201.0)
    assert str(size) == "size=45.21kB"
    assert Budget.parse(str(size)).limit >= 45_201.0
    assert str(Budget(kind="bops", limit=1.5e12)) == "bops=1500G"
    assert str(Budget(kind="size", limit=999.0)) == "size=999B"

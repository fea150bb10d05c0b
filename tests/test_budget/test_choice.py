"""The widths under a budget, against all choices there are."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from onnxdfq.budget import Budget, MixedBits, bit_choices, check_budget
from onnxdfq.budget.costs import bit_operations, read_layers, size_bits
from onnxdfq.calibration.calibration import Calibration
from onnxdfq.calibration.sensitivity import measure_sensitivity
from onnxdfq.engine import TorchGraph
from onnxdfq.errors import InputError
from onnxdfq.model_file import load_model
from onnxdfq.recipe.bits import LayerBits
from onnxdfq.targets import load_target
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.quantize.plan import QuantPlan
from passes.write.insert_qdq import InsertQdq

ORT = load_target("ort")
PIXELS = np.random.default_rng(1).normal(size=(16, 2, 4, 4)).astype("f4")
FEW = replace(ORT, weight_bits=(2, 4, 8), activation_bits=(3, 5, 8))

# Two layers read what the first gives: they share the width of that activation.
FORK = """(float[N,2,4,4] x) => (float[N,3,4,4] y) {
    h = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[1,1], dilations=[1,1], group=1> (x, w)
    r = Relu (h)
    a = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[1,1], dilations=[1,1], group=1> (r, u)
    b = Conv <kernel_shape=[1,1], pads=[0,0,0,0], strides=[1,1], dilations=[1,1], group=1> (r, v)
    y = Add (a, b)
}"""
NODES = ("Conv_h", "Conv_a", "Conv_b")


@pytest.fixture
def fork(build: Callable[..., ir.Model]) -> ir.Model:
    random = np.random.default_rng(0)
    shapes = {"w": (4, 2, 3, 3), "u": (3, 4, 3, 3), "v": (3, 4, 1, 1)}
    return build(FORK, **{name: random.normal(size=shape).astype("f4") for name, shape in shapes.items()})


def choose(model: ir.Model, budget: str, calibration: Calibration, target=FEW, pixels=PIXELS) -> MixedBits:  # type: ignore[no-untyped-def]
    observed = replace(calibration, layer_bits={}).observe(model, pixels, [target])
    wanted = Budget.parse(budget)
    return bit_choices(model, pixels, observed, calibration, target, wanted).within(wanted.limit)


def all_choices(model: ir.Model) -> list[tuple[float, int, float, tuple[int, ...]]]:
    """(bytes, bit operations, loss, bits of w, u, v and of r) of every choice."""
    calibration = Calibration()
    observed = calibration.observe(model, PIXELS, [FEW])

    def plans(widths: tuple[int, ...], setting: str) -> dict[int, QuantPlan]:
        return {bits: replace(calibration, **{setting: bits}).decide(model, observed, FEW) for bits in widths}

    measured = measure_sensitivity(
        model,
        PIXELS,
        weights=dict.fromkeys(NODES, plans(FEW.weight_bits, "weight_bits")),
        activations={"r": plans(FEW.activation_bits, "activation_bits")},
        batch_size=32,
        device="cpu",
        advance=lambda note: None,
    )
    layers = read_layers(model, FEW)
    found = []
    for *weights, activation in product(FEW.weight_bits, FEW.weight_bits, FEW.weight_bits, FEW.activation_bits):
        bits = dict(zip(NODES, weights, strict=True))
        loss = sum(measured.weights[name][width] for name, width in bits.items())
        bops = bit_operations(layers, bits, {"x": 8, "r": activation})
        loss_of_r = measured.activations["r"][activation]
        found.append((size_bits(layers, bits) / 8, bops, loss + loss_of_r, (*weights, activation)))
    return found


def as_tuple(chosen: MixedBits) -> tuple[int | None, ...]:
    assert list(chosen.layers) == list(NODES)
    weights, activations = zip(*((bits.weight, bits.activation) for bits in chosen.layers.values()), strict=True)
    assert activations[0] == 8, "the image keeps 8 bits"
    assert activations[1] == activations[2], "they read the same"
    return (*weights, activations[1])


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 1.0])
def test_a_budget_of_operations(fork: ir.Model, share: float) -> None:
    choices = all_choices(fork)
    costs = [bops for _, bops, _, _ in choices]
    limit = min(costs) + round(share * (max(costs) - min(costs)))
    chosen = choose(fork, f"bops={limit}", Calibration())
    size, bops, loss, bits = min((c for c in choices if c[1] <= limit), key=lambda choice: choice[2])
    assert (as_tuple(chosen), chosen.bops, chosen.size) == (bits, bops, size)
    assert chosen.loss == pytest.approx(loss)


@pytest.mark.parametrize("share", [0.0, 0.4, 0.7])
def test_a_budget_of_bytes_leaves_activations_alone(fork: ir.Model, share: float) -> None:
    choices = [choice for choice in all_choices(fork) if choice[3][-1] == 5]
    sizes = [size for size, _, _, _ in choices]
    limit = min(sizes) + round(share * (max(sizes) - min(sizes)))
    chosen = choose(fork, f"size={limit}B", Calibration(activation_bits=5))
    size, bops, _, bits = min((c for c in choices if c[0] <= limit), key=lambda choice: choice[2])
    assert (as_tuple(chosen), chosen.bops, chosen.size) == (bits, bops, size)


def test_bits_of_the_recipe_are_the_most(fork: ir.Model) -> None:
    chosen = choose(fork, "bops=1G", Calibration(weight_bits=4, activation_bits=5))
    assert as_tuple(chosen) == (4, 4, 4, 5)


def test_what_is_pinned_stays(fork: ir.Model) -> None:
    pins = {"Conv_a": LayerBits(weight=8), "Conv_b": LayerBits(weight=2, activation=3)}
    for budget in ("bops=1G", "bops=70k"):
        chosen = choose(fork, budget, Calibration(layer_bits=pins))
        assert as_tuple(chosen)[1:] == (8, 2, 3)
    assert as_tuple(chosen)[0] == 2


def test_pins_that_cannot_be(fork: ir.Model) -> None:
    with pytest.raises(InputError, match="Did you mean 'Conv_h'"):
        choose(fork, "bops=1G", Calibration(layer_bits={"Conv_x": LayerBits(weight=8)}))
    pins = {"Conv_a": LayerBits(activation=3), "Conv_b": LayerBits(activation=5)}
    with pytest.raises(InputError, match="read the same values"):
        choose(fork, "bops=1G", Calibration(layer_bits=pins))
    with pytest.raises(InputError, match="takes weights of 2, 4 or 8 bits, not of 3"):
        choose(fork, "bops=1G", Calibration(layer_bits={"Conv_h": LayerBits(weight=3)}))


def test_a_budget_that_cannot_be_met(fork: ir.Model) -> None:
    least = (72 + 108 + 12) * 2 / 8 + (4 + 3 + 3) * 4
    message = rf"size=87B cannot be met: .* target ort is size={least:g}B\."
    with pytest.raises(InputError, match=message):
        choose(fork, "size=87B", Calibration())
    with pytest.raises(InputError, match=message):
        check_budget(fork, Calibration(), FEW, Budget.parse("size=87B"))
    assert choose(fork, f"size={least:g}B", Calibration()).size == least
    with pytest.raises(InputError, match=r"with what the plan pins"):
        choose(fork, f"size={least:g}B", Calibration(layer_bits={"Conv_h": LayerBits(weight=4)}))


@pytest.mark.parametrize("budget", ["size=1MB", "bops=1G"])
def test_float_activations_count_32_bits(fork: ir.Model, budget: str) -> None:
    chosen = choose(fork, budget, Calibration(activation_bits=32), target=ORT)
    assert [str(bits) for bits in chosen.layers.values()] == ["w8", "w8", "w8"]
    assert chosen.bops == (72 + 108 + 12) * 16 * 8 * 32


@pytest.mark.slow
def test_resnet20_gains_over_one_width_for_all(shared_data: Path) -> None:
    """At the same size the noise at the output is less than half of that of 4 bits everywhere. On noise images."""
    model = load_model(shared_data / "models/resnet20_cifar10jpeg.onnx")
    Canonicalize()(model)
    FoldBatchNorm()(model)
    pixels = np.random.default_rng(0).normal(size=(16, 3, 32, 32)).astype("f4")
    calibration = Calibration()
    observed = calibration.observe(model, pixels, [ORT])
    layers = read_layers(model, ORT)
    limit = size_bits(layers, {layer.node: 4 for layer in layers}) / 8
    chosen = bit_choices(model, pixels, observed, calibration, ORT, Budget(kind="size", limit=limit)).within(limit)
    assert 0.99 * limit < chosen.size <= limit
    wanted = TorchGraph(model)(torch.from_numpy(pixels))[0]

    def noise(settings: Calibration) -> float:
        quantized = model.clone()
        InsertQdq(settings.decide(model, observed, ORT), ORT)(quantized)
        return float((TorchGraph(quantized)(torch.from_numpy(pixels))[0] - wanted).square().sum())

    assert noise(replace(calibration, layer_bits=chosen.layers)) < 0.5 * noise(replace(calibration, weight_bits=4))


def test_a_number_per_channel_keeps_eight_bits(build: Callable[..., ir.Model]) -> None:
    random = np.random.default_rng(0)
    model = build(
        """(float[N,2,4,4] x) => (float[N,4,4,4] y) {
        h = Conv <kernel_shape=[3,3], pads=[1,1,1,1], strides=[1,1], dilations=[1,1], group=1> (x, w)
        y = Conv <kernel_shape=[1,1], pads=[0,0,0,0], strides=[1,1], dilations=[1,1], group=4> (h, s)
    }""",
        w=random.normal(size=(4, 2, 3, 3)).astype("f4"),
        s=random.normal(size=(4, 1, 1, 1)).astype("f4"),
    )
    least = 4 * 2 * 9 * 2 // 8 + 4 + 2 * 4 * 4  # bytes of the first at 2 bits, of the second at 8, and of the scales
    assert choose(model, f"size={least}B", Calibration()).weight_bits == {"Conv_h": 2, "Conv_y": 8}
    with pytest.raises(InputError, match="cannot be met"):
        check_budget(model, Calibration(), FEW, Budget.parse(f"size={least - 1}B"))
    pinned = Calibration(layer_bits={"Conv_y": LayerBits(weight=4)})
    assert choose(model, f"size={least}B", pinned).weight_bits["Conv_y"] == 4

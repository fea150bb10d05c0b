"""A reconstruction step of a residual block in the engine against the same block written as a torch module."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxdfq.calibration.calibration import Calibration
from onnxdfq.model_file import load_model
from onnxdfq.synthesis.network import resolve_precision
from onnxdfq.targets import load_target
from onnxdfq.tuning.activations import ActivationQuantizer
from onnxdfq.tuning.block import TunedBlock, reconstruction_error
from onnxdfq.tuning.blocks import find_blocks
from onnxdfq.tuning.quantized import QdqGraph
from onnxdfq.tuning.rounding import WeightRounding
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm

pytestmark = pytest.mark.benchmark

PAIRS, BATCH = 40, 32


class Native(nn.Module):
    """The second block of ResNet-20: two convolutions, the sum, and the same quantizers."""

    def __init__(
        self, tuned: TunedBlock, roundings: list[WeightRounding], quantizers: list[ActivationQuantizer]
    ) -> None:
        super().__init__()
        self.roundings = nn.ModuleList(roundings)
        self.quantizers = nn.ModuleList(quantizers)
        self.biases = nn.ParameterList([bias.detach().clone() for bias in tuned.biases.values()])

    def forward(self, x: Tensor, exact: Tensor) -> Tensor:
        first, second = self.roundings
        entry, middle, branch = self.quantizers
        x = entry.mixed(x, exact)
        y = middle(F.relu(F.conv2d(x, first(), self.biases[0], padding=1)))
        return F.relu(branch(F.conv2d(y, second(), self.biases[1], padding=1)) + x)


def test_a_block_step_takes_no_longer_than_a_native_one(shared_data: Path) -> None:
    model = load_model(shared_data / "models" / "resnet20_cifar10jpeg.onnx")
    Canonicalize()(model)
    FoldBatchNorm()(model)
    ort = load_target("ort")
    pixels = np.random.default_rng(0).standard_normal((64, 3, 32, 32)).astype(np.float32)
    plan = Calibration(weight_bits=4, activation_bits=4).plan(model, pixels, ort)
    block = find_blocks(model)[1]
    graph = QdqGraph(model, plan, ort)
    dtype = resolve_precision(torch.device("cpu"), "auto")

    def parts() -> tuple[dict[str, WeightRounding], dict[str, ActivationQuantizer]]:
        roundings = {name: graph.rounding(name) for name in block.weights}
        quants = {key: ActivationQuantizer(q, learned=True, searched=False) for key, q in plan.activations.items()}
        return roundings, quants

    roundings, quantizers = parts()
    tuned = TunedBlock(graph, block, roundings, quantizers, dtype=dtype)
    own, others = parts()
    native = Native(tuned, list(own.values()), [others[key] for key in tuned.quantizers])

    def native_forward(entry: Tensor, exact: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
            result: Tensor = native(entry, exact)
        return result

    x = torch.relu(torch.randn(BATCH, 16, 32, 32)).to(dtype).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(native_forward(x, x), tuned(x, x), rtol=0.1, atol=0.1)
    target = torch.zeros_like(x)
    tuned_parameters = [
        p for p in (*tuned.parameters(), *(q.log2_scale for q in tuned.quantizers.values())) if p.requires_grad
    ]
    cases: list[tuple[Callable[[Tensor, Tensor], Tensor], list[nn.Parameter]]] = [
        (native_forward, [p for p in native.parameters() if p.requires_grad]),
        (tuned, list(dict.fromkeys(tuned_parameters))),
    ]
    assert len(cases[0][1]) == len(cases[1][1])
    ratios = []
    for _ in range(PAIRS):
        times = []
        for forward, parameters in cases:
            started = time.perf_counter()
            torch.autograd.grad(reconstruction_error(forward(x, x), target), parameters)
            times.append(time.perf_counter() - started)
        ratios.append(times[1] / times[0])
    ratio = statistics.median(ratios[5:])
    print(f"\na block step in the engine: {ratio:.3f} of the native module's time")
    assert ratio < 1.2

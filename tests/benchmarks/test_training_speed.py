"""A training step of the student against the same step in native torch modules."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxdfq.calibration.calibration import Calibration
from onnxdfq.model_file import load_model
from onnxdfq.targets import load_target
from onnxdfq.training.student import Student
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm

pytestmark = pytest.mark.benchmark

PAIRS, BATCH = 16, 32


class Native(nn.Module):
    """ResNet-20 by hand, with the student's own quantizers, weights and biases, in the order of the graph."""

    def __init__(self, model: ir.Model, student: Student) -> None:
        super().__init__()
        self.student = student
        layers = [node for node in model.graph if node.op_type == "Conv"]
        self.shapes = [(n.attributes.get_ints("strides", (1, 1))[0], n.attributes.get_ints("pads", (0, 0))[0])
                       for n in layers]  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        quantizers, shapes = iter(self.student.quantizers), iter(self.shapes)
        weights, biases = iter([weight() for weight in self.student.weights]), iter(self.student.biases())

        def conv(x: Tensor) -> Tensor:
            stride, padding = next(shapes)
            return F.conv2d(x, next(weights), next(biases), stride=stride, padding=padding)

        x = next(quantizers)(x)
        last = next(quantizers)
        x = last(F.relu(conv(x)))
        for block in range(9):
            shortcut = x
            y = next(quantizers)(F.relu(conv(x)))
            y = next(quantizers)(conv(y))
            if block in (3, 6):  # every second pixel, and channels of zeros: values of the same grid
                channels = y.shape[1] // 4
                shortcut = last(F.pad(last(x[:, :, ::2, ::2]), (0, 0, 0, 0, channels, channels)))
            last = next(quantizers)
            x = last(F.relu(y + shortcut))
        x = next(quantizers)(x.mean((2, 3)))
        result: Tensor = next(quantizers)(F.linear(x, next(weights), next(biases)))
        return result


def test_a_training_step_takes_no_longer_than_a_native_one(shared_data: Path) -> None:
    model = load_model(shared_data / "models" / "resnet20_cifar10jpeg.onnx")
    Canonicalize()(model)
    FoldBatchNorm()(model)
    ort = load_target("ort")
    pixels = np.random.default_rng(0).standard_normal((64, 3, 32, 32)).astype(np.float32)
    student = Student(model, Calibration(weight_bits=4, activation_bits=4).plan(model, pixels, ort), ort)
    native = Native(model, student)
    x = torch.from_numpy(pixels[:BATCH]).contiguous(memory_format=torch.channels_last)
    cases: list[Callable[[Tensor], Tensor]] = [native, lambda x: student(x)[0]]
    with torch.no_grad():
        one, other = (forward(x) for forward in cases)
        step = float(student.quantizers[-1].scale)  # type: ignore[arg-type]
        assert (one - other).abs().mean() < 0.2 * step, "the same network, but for biases on their grid"
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=0.0)
    ratios = []
    for _ in range(PAIRS):
        times = []
        for forward in cases:
            started = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            forward(x).square().mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            times.append(time.perf_counter() - started)
        ratios.append(times[1] / times[0])
    ratio = statistics.median(ratios[3:])
    print(f"\na training step of the student: {ratio:.3f} of the native modules' time")
    assert ratio < 1.25

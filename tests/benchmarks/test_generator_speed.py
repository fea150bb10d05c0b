"""A step of a generator and a quantized network against the same step in native torch modules."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onnxdfq.calibration.calibration import Calibration
from onnxdfq.generators.conditional import ConditionalGenerator
from onnxdfq.generators.labels import Labels, label_loss
from onnxdfq.generators.preparing import prepared_task
from onnxdfq.generators.task import GeneratorLoss
from onnxdfq.images.normalization import Normalization
from onnxdfq.model_file import load_model
from onnxdfq.targets import load_target
from onnxdfq.training.distillation import Distillation
from onnxdfq.training.student import Student
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.graph.editing import initializer_array

from .test_training_speed import Native

pytestmark = pytest.mark.benchmark

PAIRS, BATCH = 10, 32


class NativeTeacher(nn.Module):
    """ResNet-20 by hand, whose BatchNormalizations tell the mean and variance of what they read, as hooks do."""

    def __init__(self, model: ir.Model) -> None:
        super().__init__()

        def array(node: ir.Node, slot: int) -> Tensor:
            return torch.from_numpy(initializer_array(model.graph, str(node.inputs[slot].name)).copy())  # type: ignore[union-attr]

        convs = [node for node in model.graph if node.op_type == "Conv"]
        norms = [node for node in model.graph if node.op_type == "BatchNormalization"]
        self.convs = [(array(node, 1), node.attributes.get_ints("strides", (1, 1))[0]) for node in convs]
        self.norms = [[array(node, slot) for slot in (1, 2, 3, 4)] for node in norms]
        (gemm,) = [node for node in model.graph if node.op_type == "Gemm"]
        self.weight, self.bias = array(gemm, 1), array(gemm, 2)
        if not gemm.attributes.get_int("transB", 0):
            self.weight = self.weight.T

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scores, and the squared errors of means and variances, mean over channels and layers."""
        errors = []
        layers = iter(zip(self.convs, self.norms, strict=True))

        def layer(x: Tensor) -> Tensor:
            (weight, stride), (scale, shift, mean, variance) = next(layers)
            x = F.conv2d(x, weight, stride=stride, padding=1)
            errors.append(F.mse_loss(x.mean((0, 2, 3)), mean) + F.mse_loss(x.var((0, 2, 3), correction=0), variance))
            return F.batch_norm(x, mean, variance, scale, shift)

        x = F.relu(layer(x))
        for block in range(9):
            shortcut = x
            y = layer(F.relu(layer(x)))
            if block in (3, 6):
                channels = y.shape[1] // 4
                shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, channels, channels))
            x = F.relu(y + shortcut)
        return F.linear(x.mean((2, 3)), self.weight, self.bias), torch.stack(errors).mean()


def test_a_step_of_both_takes_no_longer_than_a_native_one(shared_data: Path) -> None:
    model = load_model(shared_data / "models" / "resnet20_cifar10jpeg.onnx")
    Canonicalize()(model)
    task = prepared_task(
        model,
        lambda planes, labels: ConditionalGenerator(planes, Labels(count=labels), width=64),
        GeneratorLoss(),
        method="test",
        seed=0,
        normalization=Normalization.parse("imagenet"),
        precision="float32",  # as the native modules
    )
    teacher = NativeTeacher(model)
    folded = model.clone()
    FoldBatchNorm()(folded)
    ort, distance = load_target("ort"), Distillation(temperature=20.0)
    student = Student(
        folded, Calibration(weight_bits=4, activation_bits=4).plan(folded, task.images(64, 32, 0)[0], ort), ort
    )
    native = Native(folded, student)
    limits = task.scale.limits(torch.device("cpu"))

    def ours(random: torch.Generator) -> tuple[Tensor, Tensor]:
        batch = task.draw(BATCH, random)
        found = student(batch.pixels.detach())
        answers = distance.loss(found, [batch.outputs[0].detach()], [True]) / 10
        return task.loss(batch), answers + label_loss(found[0], batch.labels)

    def by_hand(random: torch.Generator) -> tuple[Tensor, Tensor]:
        standardised, labels = task.generator(BATCH, random)
        pixels = task.scale.to_model(torch.clamp(standardised, *limits)).contiguous(memory_format=torch.channels_last)
        scores, statistics = teacher(pixels)
        found = native(pixels.detach())
        answers = distance.loss([found], [scores.detach()], [True]) / 10
        return label_loss(scores, labels) + 0.1 * statistics, answers + label_loss(found, labels)

    cases: list[Callable[[torch.Generator], tuple[Tensor, Tensor]]] = [by_hand, ours]
    with torch.no_grad():
        torch.manual_seed(0)
        (one, first), (other, second) = (case(torch.Generator().manual_seed(0)) for case in cases)
    assert float(one) == pytest.approx(float(other), rel=1e-3), "the same generator's loss"
    assert float(first) == pytest.approx(float(second), rel=0.05), "the same network, but for biases on their grid"
    optimizer = torch.optim.Adam([*task.generator.parameters(), *student.parameters()], lr=0.0)
    ratios = []
    for pair in range(PAIRS):
        times = []
        for case in cases:
            started = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            torch.stack(case(torch.Generator().manual_seed(pair))).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            times.append(time.perf_counter() - started)
        ratios.append(times[1] / times[0])
    ratio = statistics.median(ratios[2:])
    print(f"\na step of generator and quantized network: {ratio:.3f} of the native modules' time")
    assert ratio < 1.25

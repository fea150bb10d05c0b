"""A small classifier and a generator for it."""

from collections.abc import Callable

import onnx_ir as ir
import pytest

from onnxdfq.generators.conditional import ConditionalGenerator
from onnxdfq.generators.labels import Labels
from onnxdfq.generators.preparing import prepared_task
from onnxdfq.generators.task import GeneratorLoss, GeneratorTask

Make = Callable[..., GeneratorTask]


@pytest.fixture
def make(small_model: ir.Model) -> Make:
    """Loss settings → a new task for the small model."""

    def build(**loss: float) -> GeneratorTask:
        return prepared_task(
            small_model,
            lambda planes, labels: ConditionalGenerator(planes, Labels(count=labels), latent=16, width=16),
            GeneratorLoss(**loss),  # type: ignore[arg-type]
            method="test",
            seed=0,
        )

    return build

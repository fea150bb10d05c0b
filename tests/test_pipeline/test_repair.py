"""`prune --repair distillation`: its rates."""

from pathlib import Path

import onnx_ir as ir
import pytest

from onnxdfq.methods.method import FloatModel, Run
from onnxdfq.pipeline.distillation import teaching_of
from onnxdfq.recipe import Recipe
from onnxdfq.recipe.choices import Statistics
from onnxdfq.recipe.distillation import KnowledgeDistillation


@pytest.mark.parametrize(
    ("pruned", "statistics", "rate"),
    [(False, "batch", 0.1), (False, "fixed", 0.1), (True, "batch", 0.01), (True, "fixed", 0.001)],
)
def test_what_was_trained_before_trains_slowly(
    pruned: bool, statistics: Statistics, rate: float, small_model: ir.Model
) -> None:
    asked = KnowledgeDistillation(statistics=statistics)
    model = FloatModel(graph=small_model, source=Path("small.onnx"))
    assert teaching_of(asked, model, Run(recipe=Recipe()), pruned=pruned).rates.rate == rate

"""`prune --repair distillation`: its rates, its slices, and how it goes on from a work folder."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

import onnxdfq
from onnxdfq.methods.method import FloatModel, Run
from onnxdfq.pipeline.distillation import teaching_of
from onnxdfq.recipe import Recipe
from onnxdfq.recipe.choices import Statistics
from onnxdfq.recipe.distillation import KnowledgeDistillation
from onnxdfq.training.loop import Loop
from onnxdfq.work.checkpoint import Checkpoint
from onnxdfq.work.folder import kept_in

from ..breaking import broken_off, counted
from ..graphs import natural_images
from ..slow import slow


@pytest.fixture
def small(tmp_path: Path, small_model: ir.Model) -> Path:
    ir.save(small_model, tmp_path / "small.onnx")
    return tmp_path / "small.onnx"


def repaired(model: Path, **given: Any) -> onnxdfq.Result:
    common: dict[str, Any] = {"sparsity": 0.5, "repair": "distillation", "train_steps": 6, "force": True}
    output = model.with_name("pruned.onnx")
    return onnxdfq.prune(model, output=output, calibration=natural_images(80, 1, 8), **common | given)


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


def test_slices_come_to_the_same_but_for_rounding(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxdfq.training.teaching.resolve_precision", lambda *_: torch.float32)  # tells orders apart
    given = {"statistics": "fixed", "train_steps": 3}
    one, three = (repaired(small, train_slices=count, **given).metrics["loss_curve"] for count in (1, 3))
    np.testing.assert_allclose(np.array(three, float), np.array(one, float), rtol=1e-4)
    assert three != one, "the sums have another order"


@pytest.mark.parametrize("statistics", ["batch", slow("fixed")])
def test_the_same_call_goes_on_to_the_same_bytes(
    statistics: Statistics, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "due", True)
    wanted = repaired(small, statistics=statistics).path
    assert wanted is not None
    whole = wanted.read_bytes()
    with broken_off(Loop, "_step", at=4):
        repaired(small, statistics=statistics, work_dir=tmp_path / "work")
    assert [one.stage for one in kept_in(tmp_path / "work")] == ["repair"]
    with counted(Loop, "_step") as taken:
        again = repaired(small, statistics=statistics, work_dir=tmp_path / "work").path
        assert again is not None and again.read_bytes() == whole and len(taken) == 2
        repaired(small, statistics=statistics, work_dir=tmp_path / "work", sparsity=0.4)
    assert len(taken) == 2 + 6, "another network begins anew"

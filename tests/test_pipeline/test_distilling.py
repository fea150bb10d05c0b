"""`--tuning distil`: what it reports, and how it goes on from a work folder."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxdfq
from onnxdfq.errors import OutputError
from onnxdfq.training import distilling
from onnxdfq.training.loop import Loop
from onnxdfq.tuning import tuning
from onnxdfq.work.checkpoint import Checkpoint
from onnxdfq.work.folder import kept_in

from ..breaking import broken_off, counted
from ..graphs import DIGITS


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps, and a checkpoint at each look."""
    short = replace(distilling.EFFORTS["fast"], loop=Loop(steps=12, batch_size=16, looks=4))
    monkeypatch.setitem(distilling.EFFORTS, "fast", short)
    monkeypatch.setitem(tuning.EFFORTS, "fast", replace(tuning.EFFORTS["fast"], steps=4))
    monkeypatch.setattr(Checkpoint, "due", True)


def compressed(folder: Path, **settings: Any) -> onnxdfq.Result:
    images = np.random.default_rng(0).standard_normal((48, 1, 8, 8)).astype(np.float32)
    common: dict[str, Any] = {"bits": "w3a4", "calibration": images, "tuning": "distil", "force": True}
    return onnxdfq.compress(DIGITS / "digits.onnx", output=folder / "q.onnx", **common | settings)


def test_the_curve_is_in_the_result(tmp_path: Path) -> None:
    result = compressed(tmp_path)
    curve = result.metrics["loss_curve"]
    assert [row[0] for row in curve] == [0, 3, 6, 9, 12] and curve[0][1] is None
    json.dumps(result.metrics)
    assert result.metrics["blocks_tuned"] > 0


@pytest.mark.slow
def test_the_same_call_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    wanted = compressed(tmp_path).path
    assert wanted is not None
    whole, work = wanted.read_bytes(), tmp_path / "work"
    with broken_off(Loop, "_step", at=7):
        compressed(tmp_path, work_dir=work)
    assert sorted(one.stage for one in kept_in(work)) == ["distilling", "thresholds", "tuning"]
    with counted(Loop, "_step") as taken:
        again = compressed(tmp_path, work_dir=work).path
        assert again is not None and again.read_bytes() == whole
        assert len(taken) == 6  # of twelve, six were done at the last look
        compressed(tmp_path, work_dir=work, seed=1)
    assert len(taken) == 6 + 12, "another recipe begins anew"


def test_a_work_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is no folder; give the name of one"):
        compressed(tmp_path, work_dir=tmp_path / "file")
    with pytest.raises(OutputError, match="does not exist; create it first"):
        compressed(tmp_path, work_dir=tmp_path / "absent" / "work")


def test_outputs_that_are_no_classes_are_told(tmp_path: Path) -> None:
    from ..graphs import build

    model = build(
        "(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y) { a = Conv<pads = [1, 1, 1, 1]>(x, v) b = Relu(a) "
        "y = Conv<pads = [1, 1, 1, 1]>(b, w) }",
        v=np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32),
        w=np.random.default_rng(1).normal(size=(4, 4, 3, 3)).astype(np.float32),
    )
    images = np.random.default_rng(0).standard_normal((48, 3, 8, 8)).astype(np.float32)
    result = onnxdfq.compress(model, calibration=images, tuning="distil", bits="w3a4")
    assert "No output scores classes: distillation goes by the squared error of the outputs." in result.notes

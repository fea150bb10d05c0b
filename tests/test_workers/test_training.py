"""Several processes train together: BRECQ, distillation into the quantized graph, and that of a float student."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import onnxdfq
from onnxdfq.calibration.calibration import Calibration
from onnxdfq.errors import InputError, WorkerError
from onnxdfq.methods import Dafl, Gdfq, Noise
from onnxdfq.targets import load_target
from onnxdfq.training import distilling
from onnxdfq.training.distilling import Distilling
from onnxdfq.training.loop import Loop
from onnxdfq.training.rates import Rates
from onnxdfq.tuning import tuning
from onnxdfq.tuning.reconstruction import Outcome, Reconstruction
from onnxdfq.tuning.tuning import Tuning
from onnxdfq.work.checkpoint import Checkpoint
from onnxdfq.workers import ALONE, Workers
from passes.canonical.canonicalize import Canonicalize
from passes.canonical.fold_batch_norm import FoldBatchNorm
from passes.quantize.plan import QuantPlan

from ..breaking import broken_off
from ..graphs import DIGITS, natural_images
from ..slow import slow

MODEL = DIGITS / "digits.onnx"
ORT = load_target("ort")
IMAGES = natural_images(48, 1, 8)
Together = Callable[..., list[Any]]
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(distilling.EFFORTS["fast"], loop=Loop(steps=6, batch_size=16, looks=3))
    monkeypatch.setitem(distilling.EFFORTS, "fast", short)
    monkeypatch.setitem(tuning.EFFORTS, "fast", replace(tuning.EFFORTS["fast"], steps=4, batch_size=16))


@pytest.fixture
def small(tmp_path: Path, small_model: ir.Model, student_model: ir.Model) -> Path:
    """A network; its student lies beside it."""
    ir.save(small_model, tmp_path / "small.onnx")
    ir.save(student_model, tmp_path / "student.onnx")
    return tmp_path / "small.onnx"


def compressed(workers: Workers, model: Path, output: Path, **given: Any) -> tuple[str, ...]:
    common: dict[str, Any] = {"bits": "w3a4", "calibration": IMAGES, "train_slices": 3}
    return onnxdfq.compress(model, output=output, workers=workers, **common | given).notes


def distilled(workers: Workers, model: Path, output: Path, **given: Any) -> None:
    common: dict[str, Any] = {"method": Noise(), "images": 40, "train_steps": 4, "train_batch": 16, "rate": 1e-4}
    common |= {"train_slices": 3, "statistics": "fixed", "optimizer": "adam"}
    onnxdfq.distill(model, model.with_name("student.onnx"), output=output, workers=workers, **common | given)


@pytest.fixture
def planned(small_model: ir.Model) -> tuple[ir.Model, QuantPlan]:
    """Folded, and a plan of few bits."""
    model = small_model.clone()
    Canonicalize()(model)
    FoldBatchNorm()(model)
    return model, Calibration(weight_bits=3, activation_bits=4, scheme="free").plan(model, IMAGES, ORT)


def test_two_workers_tune_the_plan_of_one(together: Together, planned: tuple[ir.Model, QuantPlan]) -> None:
    def tuned(workers: Workers) -> tuple[str, list[Outcome]]:
        reconstruction = Reconstruction(steps=20, batch_size=16, rate=0.1, slices=3)
        tuning = Tuning(by_block=True, learn_scales=True, reconstruction=reconstruction)
        found, parts = tuning.tune(*planned, ORT, IMAGES, workers=workers)
        return found.fingerprint, [part.outcome for part in parts]

    alone = tuned(ALONE)
    assert any(outcome.after < outcome.before for outcome in alone[1]), "it learned"
    assert together(2, tuned) == [alone] * 2


def test_two_workers_distil_the_plan_of_one(together: Together, planned: tuple[ir.Model, QuantPlan]) -> None:
    def fingerprint(workers: Workers) -> tuple[str, list[list[float | None]]]:
        distilling = Distilling(loop=Loop(steps=4, batch_size=16, looks=2, slices=3), rates=Rates(weight=1e-2))
        found, training = distilling.train(*planned, ORT, IMAGES, learn_scales=True, workers=workers)
        return found.fingerprint, training.rows()

    alone = fingerprint(ALONE)
    assert alone[0] != planned[1].fingerprint, "it learned"
    assert together(2, fingerprint) == [alone] * 2


@pytest.mark.slow
def test_any_number_of_workers_distils_to_the_same_student(together: Together, small: Path, tmp_path: Path) -> None:
    distilled(ALONE, small, tmp_path / "1.onnx")
    for size in (2, 3):
        work = partial(distilled, model=small, output=tmp_path / f"{size}.onnx")
        assert together(size, work) == [None] * size
        assert (tmp_path / f"{size}.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()
    written, start = (ir.load(tmp_path / name).graph for name in ("1.onnx", "student.onnx"))
    names = [name for name in written.initializers if name in start.initializers]
    values = [[graph.initializers[name].const_value for name in names] for graph in (written, start)]
    assert any(not np.array_equal(a.numpy(), b.numpy()) for a, b in zip(*values, strict=True) if a and b), "it learned"


@pytest.mark.parametrize(
    "given",
    [
        slow({"tuning": "brecq"}),
        slow({"tuning": "brecq", "scheme": "free"}),
        slow({"tuning": "distil", "scheme": "free"}),
        slow({"tuning": "distil", "calibration": None, "method": "zeroq", "steps": 2, "images": 37, "batch_size": 16}),
        slow({"tuning": "distil", "calibration": None, "method": Gdfq(steps=2, warm_up=4), "images": 37}),
    ],
    ids=["brecq", "brecq-free", "distil", "distil-zeroq", "distil-gdfq"],
)
def test_any_number_of_workers_trains_to_the_same_file(
    given: dict[str, Any], together: Together, tmp_path: Path
) -> None:
    compressed(ALONE, MODEL, tmp_path / "1.onnx", **given)
    for size in (2, 3):
        first, *others = together(size, partial(compressed, model=MODEL, output=tmp_path / f"{size}.onnx", **given))
        assert f"{size} workers make the images together, and train together." in first
        assert others == [None] * (size - 1)
        assert (tmp_path / f"{size}.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()


@pytest.mark.slow
def test_any_number_of_workers_goes_on_from_a_work_folder(
    together: Together, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker is broken off in the distillation; two go on, behind its images, its blocks and its steps."""
    monkeypatch.setattr(Checkpoint, "due", True)
    given = {"model": MODEL, "tuning": "distil", "method": "zeroq", "steps": 2, "images": 37, "calibration": None}
    compressed(ALONE, output=tmp_path / "whole.onnx", **given)
    with broken_off(Loop, "_step", at=4):
        compressed(ALONE, output=tmp_path / "broken.onnx", work_dir=tmp_path / "work", **given)
    work = partial(compressed, output=tmp_path / "again.onnx", work_dir=tmp_path / "work", **given)
    first, second = together(2, work)
    assert any("The images are those of an earlier run" in note for note in first) and second is None
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


@pytest.mark.slow
def test_who_has_nothing_to_do_is_told(together: Together, small: Path, tmp_path: Path) -> None:
    work = partial(compressed, model=small, output=tmp_path / "q.onnx", tuning="brecq", train_slices=2)
    first, *others = together(3, work)
    told = "2 of 3 workers find work in a batch that trains; with --train-slices 3 all do, and rounding comes out"
    assert any(note.startswith(told) for note in first) and others == [None, None]


def test_a_rank_with_other_images_is_named(together: Together, small: Path, tmp_path: Path) -> None:
    def work(workers: Workers) -> None:
        compressed(workers, small, tmp_path / "q.onnx", tuning="brecq", calibration=IMAGES + workers.rank)

    for error in together(2, work):
        assert isinstance(error, WorkerError) and error.exit_code == 2
        assert "Rank 1 of 2 (" in str(error) and "has images of SHA-256 " in str(error)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (partial(compressed, ALONE, tuning="none"), "none of adaround, brecq and distil runs here; name one with"),
        (partial(compressed, ALONE, bits="w4a32", block=32), "none of adaround, brecq and distil runs here"),
        (partial(distilled, ALONE, method=Dafl()), "dafl trains a generator beside the student, whose batches hang"),
    ],
)
def test_batches_that_are_not_cut_are_refused(call: Callable[..., Any], said: str, small: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--train-slices 3 cuts batches that train, and") as caught:
        call(model=small, output=tmp_path / "q.onnx")
    assert said in str(caught.value)


def test_a_model_of_one_batch_size_is_refused(one_batch: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the model runs at batches of 1 alone; leave it out, or export"):
        compressed(ALONE, one_batch, tmp_path / "q.onnx", tuning="brecq")

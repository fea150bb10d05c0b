"""A run that is broken off goes on to the bytes of one that was not; images are made once for many runs."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnxdfq
from onnxdfq.budget import choice
from onnxdfq.methods import DeadLeaves, Dgh, Genie, Mixmix, ZeroQ
from onnxdfq.methods.dgh.search import _Search
from onnxdfq.methods.method import Method
from onnxdfq.pipeline import dropping, planning
from onnxdfq.tuning import tuning
from onnxdfq.tuning.reconstruction import Reconstruction
from onnxdfq.tuning.tuning import Tuning
from onnxdfq.work.checkpoint import Checkpoint, Parts
from onnxdfq.work.folder import kept_in

from ..breaking import broken_off, counted
from ..graphs import DIGITS
from ..slow import slow

MODEL = DIGITS / "digits.onnx"
KILLS = 20
# as the command, but for a checkpoint at each step: the runs are too short for one every two minutes
RUN = (
    "from onnxdfq.work.checkpoint import Checkpoint; Checkpoint.due = True; "
    "from onnxdfq.cli.main import main; main(prog_name='onnxdfq')"
)
OPTIONS: dict[str, list[str]] = {
    "dgh": ["-m", "dgh", "--steps", "40", "--images", "96"],
    "brecq": ["-m", "dead-leaves", "--images", "64", "--bits", "w4a8", "--tuning", "brecq"],
    "distil": ["-m", "dead-leaves", "--images", "64", "--bits", "w4a8", "--tuning", "distil"],
    "gdfq": ["-m", "gdfq", "--steps", "30", "--set", "gdfq.warm_up=30", "--images", "64"],
    "mixmix": ["-m", "mixmix", "--steps", "10", "--images", "128", "--batch-size", "16", "--zoo", str(MODEL)],
}


@pytest.fixture(autouse=True)
def _always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "due", True)


def compressed(folder: Path, **settings: Any) -> onnxdfq.Result:
    common: dict[str, Any] = {"normalize": "none", "force": True, "images": 40}
    return onnxdfq.compress(MODEL, output=folder / "q.onnx", **common | settings)


def bytes_of(result: onnxdfq.Result) -> bytes:
    assert result.path is not None
    return result.path.read_bytes()


@pytest.mark.parametrize(
    "method",
    [
        slow(DeadLeaves(steps=2, batch_size=16)),
        Dgh(steps=6, batch_size=16),
        slow(ZeroQ(steps=2, batch_size=16)),
        slow(Genie(steps=2, batch_size=16, latent=8, width=4)),
        slow(Mixmix(steps=2, batch_size=16)),
    ],
    ids=lambda method: method.name,
)
def test_images_go_on_where_they_were_broken_off(method: Method, tmp_path: Path) -> None:
    kind: Any = _Search if isinstance(method, Dgh) else Parts
    name = "visit" if isinstance(method, Dgh) else "_round"

    def synthesized(work: Path | None) -> tuple[bytes, int]:
        with counted(kind, name) as calls:
            found = onnxdfq.synthesize(MODEL, method=method, normalize="none", images=40, work_dir=work)
        assert found.images is not None
        return found.images.pixels.tobytes(), len(calls)

    whole, _ = synthesized(None)
    work = tmp_path / "work"
    with broken_off(kind, name, at=8 if isinstance(method, Dgh) else 2):
        onnxdfq.synthesize(MODEL, method=method, normalize="none", images=40, work_dir=work)
    assert [(one.stage, one.done) for one in kept_in(work)] == [("images", False)]
    found, calls = synthesized(work)
    assert found == whole
    if isinstance(method, Dgh):
        assert calls == 6 * 3 - 6  # of three batches six times, two rounds were kept
    assert [(one.stage, one.done) for one in kept_in(work)] == [("images", True)]
    assert synthesized(work) == (whole, 0)


def test_images_serve_runs_of_other_bits(tmp_path: Path) -> None:
    work, method = tmp_path / "work", Dgh(steps=2, batch_size=16)
    first = compressed(tmp_path, method=method, work_dir=work)
    second = compressed(tmp_path, method=method, work_dir=work, bits="w8a8", scheme="free")
    assert not [note for note in first.notes if "earlier run" in note]
    assert [note for note in second.notes if note.startswith("The images are those of an earlier run, from ")]
    assert first.images is not None and second.images is not None
    assert first.images.pixels.tobytes() == second.images.pixels.tobytes()
    assert first.images.provenance == second.images.provenance and second.images.method == "dgh"
    anew = compressed(tmp_path, method=method, work_dir=work, seed=1)
    assert any("keeps images of another model, recipe or version" in note for note in anew.notes)
    assert [one.stage for one in kept_in(work)].count("images") == 2


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["size=40kB", slow("drop=20"), slow("size=40kB,drop=20")])
def test_what_was_measured_is_not_measured_again(budget: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, measured = tmp_path / "work", list[str]()

    def counts(place: Any, name: str) -> None:
        own = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *given, **named: (measured.append(name), own(*given, **named))[1])

    counts(planning, "thresholds_by_outputs")
    counts(choice, "measure_sensitivity")
    counts(dropping, "evaluate")
    images = np.random.default_rng(0).standard_normal((64, 1, 8, 8)).astype(np.float32)
    settings: dict[str, Any] = {"calibration": images, "tuning": "none", "budget": budget, "target": "compact"}
    whole = bytes_of(compressed(tmp_path, **settings))
    found, kept = set(measured), bytes_of(compressed(tmp_path, **settings, work_dir=work))
    measured.clear()
    again = bytes_of(compressed(tmp_path, **settings, work_dir=work))
    assert whole == kept == again and found and not measured
    compressed(tmp_path, **settings | {"calibration": images[::-1].copy()}, work_dir=work)
    assert set(measured) == found, "other inputs are measured anew"


@pytest.mark.parametrize("scheme", ["power-of-two", slow("free")])
def test_tuning_goes_on_behind_the_blocks_that_are_done(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tuning.EFFORTS, "fast", Reconstruction(steps=6, batch_size=16, rate=0.1))
    images = np.random.default_rng(0).standard_normal((48, 1, 8, 8)).astype(np.float32)
    settings: dict[str, Any] = {"bits": "w3a4", "calibration": images, "tuning": "adaround", "scheme": scheme}
    whole, work = bytes_of(compressed(tmp_path, **settings)), tmp_path / "work"
    with broken_off(Tuning, "_tune", at=2):
        compressed(tmp_path, work_dir=work, **settings)
    with counted(Tuning, "_tune") as left:
        again = compressed(tmp_path, work_dir=work, **settings)
    assert bytes_of(again) == whole
    assert len(left) == again.metrics["blocks_tuned"] - 2 > 0
    with counted(Tuning, "_tune") as left:
        assert bytes_of(compressed(tmp_path, work_dir=work, **settings)) == whole and not left


@pytest.mark.slow
@pytest.mark.parametrize("what", OPTIONS)
def test_kills_at_random_moments_leave_the_bytes_of_an_unbroken_run(what: str, tmp_path: Path) -> None:
    def command(folder: Path) -> list[str]:
        output = ["-o", str(folder / "q.onnx"), "--force", "-q", "--work-dir", str(folder / "work")]
        return [sys.executable, "-c", RUN, "compress", str(MODEL), "--normalize", "none", *OPTIONS[what], *output]

    whole, random = tmp_path / "whole", np.random.default_rng(0)
    whole.mkdir()
    started = time.monotonic()
    subprocess.run(command(whole), check=True, capture_output=True)
    seconds, killed = time.monotonic() - started, 0
    for number in range(KILLS):
        place = tmp_path / str(number)
        place.mkdir()
        process = subprocess.Popen(command(place), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=random.uniform(0.2, 1) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
            process.wait()
        subprocess.run(command(place), check=True, capture_output=True)
        assert (place / "q.onnx").read_bytes() == (whole / "q.onnx").read_bytes()
    assert killed > KILLS / 2

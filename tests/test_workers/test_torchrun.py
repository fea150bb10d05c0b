"""The commands as torchrun starts them: the same bytes for 1, 2 and 3 workers, errors, and a rank that is killed."""

import os
import subprocess
import sys
from pathlib import Path

import onnx_ir as ir
import pytest

from ..graphs import DIGITS, REPOSITORY

pytestmark = pytest.mark.slow
MODEL = DIGITS / "digits.onnx"
OPTIONS: dict[str, list[str]] = {
    "dgh": ["-m", "dgh", "--set", "dgh.slices=2", "--steps", "3", "--images", "37", "--batch-size", "16"],
    "zeroq": ["-m", "zeroq", "--steps", "2", "--images", "37", "--batch-size", "8", "--bits", "w4a8"],
    "noise": ["-m", "noise", "--images", "37"],
    "gdfq": ["-m", "gdfq", "--steps", "5", "--set", "gdfq.warm_up=5", "--images", "37"],
}
# One rank is killed at its second part, the first time; each notes what it makes.
KILLED = """
import os, sys
from functools import partial
from pathlib import Path
from onnxdfq.cli.main import main
from onnxdfq.work.checkpoint import Checkpoint, Parts
rank, attempt = os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]
made, own, notes = [], Parts.made, Path(sys.argv.pop())
def make(maker):
    made.append(1)
    notes.joinpath(f"{attempt}-{rank}").write_text(str(len(made)))
    if (rank, attempt, len(made)) == ("1", "0", 2):
        os._exit(9)
    return maker()
Parts.made, Checkpoint.due = lambda self, makers: own(self, [partial(make, maker) for maker in makers]), True
main(prog_name="onnxdfq")
"""


def torchrun(size: int, *command: str | Path, restarts: int = 0) -> subprocess.CompletedProcess[str]:
    """Those processes, on a port of their own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    return subprocess.run(
        [*start, "--max-restarts", str(restarts), *map(str, command)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )


def test_any_number_of_workers_trains_the_same_student(
    tmp_path: Path, small_model: ir.Model, student_model: ir.Model
) -> None:
    teacher, student, written = tmp_path / "teacher.onnx", tmp_path / "student.onnx", []
    ir.save(small_model, teacher)
    ir.save(student_model, student)
    for size in (1, 2, 3):
        output = tmp_path / f"{size}.onnx"
        command = ["distill", teacher, student, "-m", "noise", "--images", "40", "--train-steps", "6", "-o", output]
        command += ["--train-batch", "16", "--statistics", "fixed", "--train-slices", "3", "--optimizer", "adam"]
        done = torchrun(size, "-m", "onnxdfq", *command)
        assert done.returncode == 0, done.stderr
        assert ("workers make the images together, and train together" in done.stderr) == (size > 1)
        written.append(output.read_bytes())
    assert written[0] == written[1] == written[2]


def test_any_number_of_workers_repairs_the_same_network(tmp_path: Path) -> None:
    written = []
    for size in (1, 2, 3):
        output = tmp_path / f"{size}.onnx"
        command = ["prune", MODEL, "--channels", "0.2", "--repair", "least-squares,distillation", "--train-steps", "4"]
        command += ["--statistics", "fixed", "--train-slices", "3", "--normalize", "none", *OPTIONS["noise"]]
        done = torchrun(size, "-m", "onnxdfq", *command, "-o", output)
        assert done.returncode == 0, done.stderr
        assert ("workers make the images together, and train together" in done.stderr) == (size > 1)
        written.append(output.read_bytes())
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("what", OPTIONS)
def test_any_number_of_workers_writes_the_same_file(what: str, tmp_path: Path) -> None:
    written = []
    for size in (1, 2, 3):
        output = tmp_path / f"{size}.onnx"
        command = ["compress", MODEL, "--normalize", "none", *OPTIONS[what], "-o", output]
        done = torchrun(size, "-m", "onnxdfq", *command)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("written: ") == 1
        assert (f"{size} workers make the images together" in done.stderr) == (size > 1)
        written.append(output.read_bytes())
    assert written[0] == written[1] == written[2]


def test_what_all_are_refused_is_told_once(tmp_path: Path) -> None:
    done = torchrun(2, "-m", "onnxdfq", "synthesize", tmp_path / "no.onnx", "-o", tmp_path / "no.npz")
    assert done.returncode == 1  # torchrun's own
    assert done.stderr.count("onnxdfq: ") == 1 and "no.onnx: there is no such file." in done.stderr
    assert "exitcode  : 2" in done.stderr


def test_a_run_goes_on_where_a_rank_was_killed(tmp_path: Path) -> None:
    program = tmp_path / "run.py"
    program.write_text(KILLED)
    command = ["synthesize", MODEL, "--normalize", "none", "-m", "zeroq", "--steps", "2", "--images", "22"]
    command += ["--batch-size", "4", "--work-dir", tmp_path / "work", "-o", tmp_path / "killed.npz"]
    done = torchrun(2, program, *command, tmp_path, restarts=1)
    assert done.returncode == 0, done.stderr
    assert [int((tmp_path / name).read_text()) for name in ("0-1", "1-0", "1-1")] == [2, 2, 2]
    assert int((tmp_path / "0-0").read_text()) == 2  # of the second round, which the other did not end
    command = [*command[:-4], "-o", tmp_path / "whole.npz"]
    assert torchrun(1, "-m", "onnxdfq", *command).returncode == 0
    assert (tmp_path / "killed.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()

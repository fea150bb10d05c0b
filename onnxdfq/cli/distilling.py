"""`onnxdfq distill`."""

from pathlib import Path
from typing import Any

import click

from onnxdfq.cli.options import FILE, SECTIONS, STATISTICS, SYNTHESIS, TRAIN_SLICES, WHOLE, SharedCommand, prepared
from onnxdfq.cli.printing import echo_float

TRAINING = (
    "train_steps",
    "train_batch",
    "train_slices",
    "optimizer",
    "rate",
    "weight_decay",
    "temperature",
    "features",
    "statistics",
    "momentum",
    "augmented",
)


@click.command(
    cls=SharedCommand,
    sections={"Training": TRAINING}
    | {key: names for key, names in SECTIONS.items() if key not in ("What", "Targets", "Proof")}
    | {"How": ("method", *SECTIONS["How"])},
    example="onnxdfq distill teacher.onnx student.onnx -o trained.onnx --method dafl --normalize cifar10",
)
@click.argument("teacher", type=FILE)
@click.argument("student", type=FILE)
@click.option("-o", "--output", type=FILE, help="[default: STUDENT.distilled.onnx beside the student]")
@click.option("--train-steps", type=WHOLE, metavar="N", help="Steps of the student; the effort says by default.")
@click.option("--train-batch", type=WHOLE, metavar="N", help="Images of each step.  [default: 64]")
@TRAIN_SLICES
@click.option("--optimizer", metavar="NAME", help="sgd or adam.  [default: sgd; adam on images of a generator]")
@click.option(
    "--rate",
    type=float,
    metavar="R",
    help="Learning rate at the start; it falls along half a cosine.  [default: 0.1 with sgd, 2e-3 with adam]",
)
@click.option("--weight-decay", type=float, metavar="W", help="Weight decay.  [default: 5e-4 with sgd, 0 with adam]")
@click.option("--temperature", type=float, metavar="T", help="Temperature at which answers are compared.  [default: 3]")
@click.option(
    "--features",
    type=float,
    metavar="W",
    help="Weight of the loss on inner values that teacher and student share by shape.  [default: 1]",
)
@STATISTICS
@click.option("--momentum", type=float, metavar="M", help="Share of a batch in running statistics.  [default: 0.1]")
@click.option("--augmented/--plain", default=None, help="Mirror, move and mix images, or not.  [default: augmented]")
@click.option("--calibration", type=FILE, metavar="FILE|FOLDER", help="Images of your own, also as .npz in a folder.")
@click.option("--evaluate", type=FILE, metavar="DATA", help="Labelled images to measure on.")
@SYNTHESIS
def distill(teacher: Path, student: Path, as_json: bool, **given: Any) -> None:
    """Train a float student, given as ONNX, against a teacher without data.

    The student may be fresh, pruned or any other with the teacher's inputs and outputs.
    """
    from onnxdfq.api import distill as run

    result = run(teacher, student, **prepared(given))
    echo_float(result, as_json=as_json)

"""`onnxdfq prune`."""

from pathlib import Path
from typing import Any

import click

from onnxdfq.cli.options import FILE, SECTIONS, STATISTICS, SYNTHESIS, TRAIN_SLICES, WHOLE, SharedCommand, prepared
from onnxdfq.cli.printing import echo_float


@click.command(
    cls=SharedCommand,
    sections={"What": ("sparsity", "channels", "pattern", "budget", "multiple", "repair")}
    | {"Training": ("train_steps", "train_slices", "statistics")}
    | {key: names for key, names in SECTIONS.items() if key not in ("What", "Targets", "Proof")}
    | {"How": ("method", *SECTIONS["How"])},
    example="onnxdfq prune model.onnx --channels 0.2 --normalize imagenet",
)
@click.argument("model", type=FILE)
@click.option("--sparsity", type=float, metavar="SHARE", help="Zero this share of each layer's weights, the smallest.")
@click.option("--channels", type=float, metavar="SHARE", help="Remove this share of each layer's channels.")
@click.option("--pattern", metavar="2:4", help="Zero two of four neighbouring weights along the input channels.")
@click.option(
    "--budget",
    metavar="WHAT",
    help="size=0.5MB, macs=20M or latency=5ms, or a share, macs=0.7: remove channels where that harms least.",
)
@click.option("--multiple", type=WHOLE, metavar="N", help="Each layer keeps a multiple of N channels.  [default: 8]")
@click.option(
    "--repair",
    metavar="NAMES",
    help="moments (means in closed form, no images), least-squares (on images), distillation (on images, zeros stay), "
    "several between commas, or none.  [default: moments,least-squares]",
)
@click.option("--train-steps", type=WHOLE, metavar="N", help="Of distillation; the effort says by default.")
@TRAIN_SLICES
@STATISTICS
@click.option("-o", "--output", type=FILE, help="[default: MODEL.pruned.onnx beside the input]")
@click.option("--calibration", type=FILE, metavar="FILE|FOLDER", help="Photographs, or arrays by input, of your own.")
@SYNTHESIS
def prune(model: Path, as_json: bool, **given: Any) -> None:
    """Prune a float ONNX model without data; the result is a float model, which compress takes."""
    from onnxdfq.api import prune as run

    result = run(model, **prepared(given))
    echo_float(result, as_json=as_json)

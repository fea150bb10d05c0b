"""`onnxdfq finetune-package`."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from onnxdfq.cli.options import AS_JSON, FILE, OP_LIBRARY, Command
from onnxdfq.cli.printing import echo, echo_json, echo_notes, written_text


@click.command(cls=Command, example="onnxdfq finetune-package model.w8a8.onnx -o package --train head")
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, metavar="FOLDER", help="The folder to write.")
@click.option(
    "--train",
    metavar="NAME",
    default="head",
    help="head (the last layer), biases, scales (of quantizers) or all.  [default: head]",
)
@click.option(
    "--loss",
    metavar="NAME",
    default="cross-entropy",
    help="cross-entropy with labels, or mse with targets.  [default: cross-entropy]",
)
@click.option("--optimizer", metavar="NAME", default="adam", help="adam, or sgd with momentum.  [default: adam]")
@click.option("--loss-on", metavar="OUTPUT", help="The output that the loss is of, where there are several.")
@click.option(
    "--format",
    metavar="NAME",
    default="onnx",
    help="onnx, or ort-training: the four artefacts of onnxruntime-training 1.19.2, float.  [default: onnx]",
)
@click.option(
    "--ort-training-python",
    type=FILE,
    metavar="FILE",
    help="The interpreter of an environment with onnxruntime-training. It is run.",
)
@click.option("--input-shape", multiple=True, metavar="[NAME=]1,C,H,W", help="Sizes that the file leaves open.")
@click.option("--force", is_flag=True, help="Replace the files of an older package.")
@OP_LIBRARY
@AS_JSON
def finetune_package(model: Path, input_shape: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Write what a device needs to go on training a model: a step of training as ONNX, its state, a loop, a README.

    Plain ONNX Runtime runs all of it. A QDQ model keeps its quantizers while it trains, and infers in integer kernels.
    """
    from onnxdfq.api import finetune_package as run
    from onnxdfq.model_file import parse_input_shapes

    found = run(model, input_shape=parse_input_shapes(input_shape), **given)
    if as_json:
        echo_json({**asdict(found), "path": str(found.path), "notes": list(found.notes)})
        return
    echo_notes(found.notes)
    echo(f"{found.parameters:,} numbers in {found.tensors:,} tensors train; the state has {found.state_bytes:,} bytes")
    echo(written_text(found.path))

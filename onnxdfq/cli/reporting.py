"""Commands that tell of what is there: why a file is noisy, and how a run went."""

import sys
from pathlib import Path
from typing import Any

import click

from onnxdfq.cli.options import AS_JSON, FILE, OP_LIBRARY, QUIET, WHOLE, Command
from onnxdfq.cli.printing import diagnosis_text, echo, echo_json, echo_notes, written_text
from onnxdfq.progress import TerminalProgress, silent
from onnxdfq.shown import sentence


def exit_unless(sentences: list[str]) -> None:
    """Exit code 1 behind sentences about what was required, where there are any."""
    for text in map(sentence, sentences):
        echo(f"onnxdfq: {text}", err=True)
    if sentences:
        sys.exit(1)


@click.command(cls=Command, example="onnxdfq diagnose model.w8a8.onnx --against model.onnx")
@click.argument("model", type=FILE)
@click.option("--against", type=FILE, metavar="FLOAT", help="The float model.  [default: MODEL without its quantizers]")
@click.option("--data", type=FILE, metavar="FILE|FOLDER", help="Inputs of your own.  [default: made]")
@click.option(
    "--target",
    metavar="NAME|FILE.toml",
    help="Whose kernels to judge by.  [default: the one it was written for, or ort]",
)
@click.option("--require", metavar="sqnr=DB", help="Exit with 1 where the signal to noise of an output is less.")
@click.option(
    "-o", "--output", type=FILE, metavar="FILE.html|FILE.json", help="Write a report: pages, or the figures alone."
)
@click.option("--normalize", metavar="HOW", help="As for compress; a model that onnxdfq wrote remembers it.")
@click.option("--seed", type=WHOLE, metavar="S", default=0, help="Of the inputs that are made.  [default: 0]")
@click.option("--device", metavar="NAME", help="auto, cpu or cuda.  [default: auto]")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@OP_LIBRARY
@AS_JSON
@QUIET
def diagnose(model: Path, require: str | None, output: Path | None, as_json: bool, quiet: bool, **given: Any) -> None:
    """Tell which layer of a quantized model hurts, why, and what to try. Any Quantize/Dequantize file will do."""
    from onnxdfq.report.diagnosing import diagnose as run
    from onnxdfq.report.requirement import read_requirement, shortfall
    from onnxdfq.report.run import plain

    least = None if require is None else read_requirement(require)
    found = run(model, report=output, progress=silent if quiet else TerminalProgress, **given)
    if as_json:
        echo_json(plain(found))
    else:
        echo_notes(found.notes)
        echo(diagnosis_text(found))
        if output is not None:
            echo(written_text(output))
    exit_unless([] if least is None else shortfall(least, found.file, found.level_db))


@click.command(cls=Command, example="onnxdfq report run.json other.json -o both.html")
@click.argument("runs", type=FILE, nargs=-1, required=True)
@click.option("-o", "--output", type=FILE, required=True, metavar="FILE.html", help="The page to write.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
def report(runs: tuple[Path, ...], output: Path, force: bool) -> None:
    """Show a report that compress or diagnose wrote as .json; two of them side by side."""
    from onnxdfq.report.writing import write_page

    write_page(output, runs, force=force)
    echo(written_text(output))

"""The command line: it parses, calls and prints. Whatever is heavy is imported inside the commands."""

import gc
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from onnxdfq.cli.distilling import distill
from onnxdfq.cli.finetuning import finetune_package
from onnxdfq.cli.images import images
from onnxdfq.cli.options import (
    AS_JSON,
    FILE,
    OP_LIBRARY,
    QUIET,
    SECTIONS,
    SYNTHESIS,
    TRAIN_SLICES,
    WHOLE,
    Command,
    Group,
    SharedCommand,
    prepared,
)
from onnxdfq.cli.printing import (
    card_text,
    echo,
    echo_json,
    echo_notes,
    findings_text,
    inspection_text,
    pairs_text,
    runtimes_text,
    summary,
    table_text,
    written_text,
)
from onnxdfq.cli.pruning import prune
from onnxdfq.cli.reporting import diagnose, exit_unless, report
from onnxdfq.progress import TerminalProgress, silent
from onnxdfq.shown import sentence, some
from passes.graph.text import printable


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="onnxdfq")
def main() -> None:
    """Data-free quantization of ONNX models: a float model in, an integer QDQ model out."""
    # Graphs are many small objects that live on: looking for garbage among them takes an eighth of a run.
    gc.set_threshold(50_000, 20, 100)


main.add_command(diagnose)
main.add_command(report)
main.add_command(images)


@main.command(
    cls=SharedCommand,
    sections=SECTIONS,
    example="onnxdfq compress model.onnx --bits w8a8 --normalize imagenet --target ort --target qnn",
)
@click.argument("model", type=FILE)
@SYNTHESIS
@click.option("-b", "--bits", metavar="wXaY", help="Bits of weights and activations; w2/6 for dfmpc.  [default: w8a8]")
@click.option(
    "-o",
    "--output",
    type=FILE,
    help="[default: MODEL.<bits>.onnx beside the input; with --budget or --plan <bits> is mixed]",
)
@click.option(
    "--target",
    multiple=True,
    metavar="NAME|FILE.toml",
    help="What to write for; may be repeated. See `onnxdfq targets`.  [default: ort]",
)
@click.option(
    "--scheme",
    metavar="NAME",
    help="Scales: power-of-two, power-of-two-activations (of weights free), free, or paper (free, and only what a Relu "
    "gives is quantized: to compare with papers).  [default: power-of-two]",
)
@click.option(
    "--tuning",
    metavar="NAME",
    help="none, adaround (layer by layer), brecq (block by block) or distil (the whole graph, behind brecq).  "
    "[default: none at 8-bit weights, brecq below]",
)
@TRAIN_SLICES
@click.option(
    "--equalize/--no-equalize",
    default=None,
    help="Even out the ranges of channels across layers first (DFQ).  [default: below 8 bits, with power-of-two scales "
    "and depthwise convolutions]",
)
@click.option("--clipping", metavar="NAME", help="Thresholds by mse, aciq or max.  [default: mse]")
@click.option(
    "--split-channels",
    type=float,
    metavar="SHARE",
    help="Split this share of channels, those with outliers, in two (OCS).",
)
@click.option(
    "--shift-negative", is_flag=True, default=None, help="Shift small negative activations to unsigned (SNC)."
)
@click.option(
    "--calibration",
    type=FILE,
    metavar="FILE|FOLDER",
    help="Photographs, or arrays by input, of your own; with --tuning distil also .npz files in a folder.",
)
@click.option("--dynamic-batch", is_flag=True, help="Let the file take any batch, whatever the model was declared for.")
@click.option("--save-images", type=FILE, metavar="FILE", help="Keep the images (.npz).")
@click.option(
    "--budget",
    metavar="WHAT",
    help="size=0.5MB or bops=1.2G: each layer gets its own bits, --bits at most; drop=0.5: bits, or layers left float, "
    "so that no more points of the float model's answers change; or size=0.5MB,drop=0.5.",
)
@click.option(
    "--block", type=WHOLE, metavar="N", help="With --bits w4a32 or w8a32: one scale for every N inputs of a layer."
)
@click.option("--rounding", metavar="NAME", help="With --block: rtn (to the nearest) or gptq.  [default: rtn]")
@click.option(
    "--keep-float",
    multiple=True,
    metavar="PATTERN",
    help="What stays float: a name, a glob, type:Softmax, before:VALUE or after:VALUE; may be repeated.",
)
@click.option(
    "--plan",
    type=FILE,
    metavar="FILE",
    help="Bits of layers, grids of tensors and what stays float: .toml, or AIMET's or ONNX Runtime's file.",
)
@click.option(
    "--save-plan", type=FILE, metavar="FILE", help="Write what was decided: .toml, .encodings (AIMET) or .json (ORT)."
)
@click.option("--evaluate", type=FILE, metavar="DATA", help="Labelled images to measure on.")
@click.option(
    "--report",
    type=FILE,
    metavar="FILE.html|FILE.json",
    help="Tell of the run: verdict, images, layers with their noise and remedies, provenance.",
)
@click.option(
    "--require",
    metavar="WHAT",
    help="Exit with 1 unless met: sqnr=DB, the least signal to noise on inputs held back (where those are too few, on "
    "what calibrated); or integer, integer:Conv,Gemm, exact, as for lint.",
)
def compress(model: Path, target: tuple[str, ...], require: str | None, as_json: bool, **given: Any) -> None:
    """Quantize a float ONNX model without data."""
    from onnxdfq.api import compress as run
    from onnxdfq.report.requirement import asks_for_integers, check_integers, read_requirement

    least = None
    if require is not None and asks_for_integers(require):
        check_integers(require, given["keep_float"])
    elif require is not None:
        least, require = read_requirement(require), None
    result = run(model, target=target or None, **prepared(given))
    several = {name: {"output": str(file.path), **file.metrics} for name, file in result.targets.items()}
    if as_json:
        targets = {"targets": several} if len(several) > 1 else {}
        head = {"output": str(result.path), "method": result.method}
        echo_json({**head, **result.metrics, **targets, "notes": list(result.notes)})
        _exit_unless_met(least, require, result, several)
        return
    echo_notes(result.notes)
    if len(several) == 1:
        echo(summary(result.metrics))
        echo(written_text(result.path))
        _exit_unless_met(least, require, result, several)
        return
    own = {key for file in result.targets.values() for key in file.metrics}
    echo(summary({key: value for key, value in result.metrics.items() if key not in own}))
    for name, file in result.targets.items():
        echo(f"\n{printable(name)}\n{summary(file.metrics)}\n{written_text(file.path)}")
    _exit_unless_met(least, require, result, several)


def _exit_unless_met(least: float | None, integers: str | None, result: Any, files: dict[str, dict[str, Any]]) -> None:
    """Exit code 1 where a file is not as `--require` asks; it is written all the same."""
    from onnxdfq.report.requirement import unmet, unmet_integers

    sentences = [] if least is None else unmet(least, files)
    exit_unless(sentences + ([] if integers is None else unmet_integers(integers, result)))


@main.command(
    cls=SharedCommand,
    sections={key: names for key, names in SECTIONS.items() if key != "Targets"}
    | {"Output": ("output", "files", "shard", *SECTIONS["Output"][1:])},
    example="onnxdfq synthesize model.onnx --normalize imagenet -o images.npz",
)
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, help="The .npz file, or folder of files, to write.")
@click.option("--files", type=WHOLE, metavar="N", help="So many files, each of --images images and of the next seed.")
@click.option("--shard", metavar="K/N", help="Only this share of the images; `onnxdfq images merge` joins all.")
@SYNTHESIS
def synthesize(model: Path, as_json: bool, **given: Any) -> None:
    """Only make the images that compress would calibrate on."""
    from onnxdfq.api import synthesize as run

    result = run(model, **prepared(given))
    if as_json:
        echo_json({"output": str(result.path), "method": result.method, **result.metrics})
        return
    echo_notes(result.notes)
    echo(summary(result.metrics))
    if len(result.metrics.get("card", {}).get("models", ())) > 1:
        echo(card_text(result.metrics["card"]))
    echo(written_text(result.path))


main.add_command(prune)
main.add_command(distill)
main.add_command(finetune_package)


@main.command(cls=Command)
@click.argument("model", type=FILE)
@click.argument("data", type=FILE)
@click.option("--against", type=FILE, metavar="FLOAT", help="The float model to compare with.")
@click.option("--normalize", metavar="HOW", help="As for compress; a model that onnxdfq wrote remembers it.")
@click.option(
    "--runtime",
    metavar="NAMES",
    help="Compare runtimes instead: ort, ort-unoptimised, openvino and engine, between commas.",
)
@OP_LIBRARY
@AS_JSON
@QUIET
def evaluate(model: Path, data: Path, runtime: str | None, as_json: bool, quiet: bool, **given: Any) -> None:
    """Measure a model on images, or on arrays by input: DATA is an .npz or .npy file, or a folder of class folders.

    Accuracy where there are labels; with --against, closeness to the float model; with --runtime, how far runtimes are
    from ONNX Runtime without optimisations, in steps of the output.
    """
    from onnxdfq.api import compare_runtimes
    from onnxdfq.api import evaluate as run

    if runtime is not None:
        if given.pop("against") is not None:
            raise click.UsageError("--runtime compares a file with itself; leave --against out.")
        shown = silent if quiet else TerminalProgress
        rows = compare_runtimes(model, data, runtime=runtime, progress=shown, **given)
        echo_json({"runtimes": [asdict(row) for row in rows]}) if as_json else echo(runtimes_text(rows))
        return
    found = run(model, data, progress=silent if quiet else TerminalProgress, **given)
    measured = asdict(found)
    notes = list(measured.pop("notes"))
    if as_json:
        values = {key: value for key, value in measured.items() if value is not None}
        echo_json(values | ({"notes": notes} if notes else {}))
        return
    echo_notes(notes)
    echo(summary(measured))


@main.command(cls=Command)
@click.argument("model", type=FILE)
@click.option("--pairs", is_flag=True, help="Show which layers dfmpc would give low bits, and who pays for each.")
@AS_JSON
def inspect(model: Path, pairs: bool, as_json: bool) -> None:
    """Show what a model holds: operators, BatchNormalization, quantization, what made it."""
    from onnxdfq.report.inspection import inspect as run
    from onnxdfq.report.inspection import layer_pairs

    found = layer_pairs(model) if pairs else asdict(run(model))
    if as_json:
        echo_json(found)
    else:
        echo(pairs_text(found) if pairs else inspection_text(found))


@main.command(cls=Command)
@click.argument("model", type=FILE)
@click.option(
    "--target",
    metavar="NAME|FILE.toml",
    help="The runtime to judge for.  [default: the one it was written for, or ort]",
)
@click.option(
    "--require",
    metavar="WHAT",
    help="Exit with 1 unless met: integer (every node computes on integers), integer:Conv,Gemm (all of these operators "
    "do), or exact (no integer kernel saturates, on any processor).",
)
@AS_JSON
def lint(model: Path, target: str | None, require: str | None, as_json: bool) -> None:
    """Tell what a runtime will do with each node of a model: compute on integers, in float, or refuse the file."""
    from onnxdfq.report.linting import lint as run
    from onnxdfq.report.linting import shortfalls

    found = run(model, target=target)
    short = () if require is None else shortfalls(found.findings, require)
    if as_json:
        entries = [asdict(finding) for finding in found.findings]
        head = {"file": found.file, "target": found.target.name, "verified": found.target.verified}
        echo_json(head | {"basis": found.basis} | dict(found.count.items()) | {"findings": entries})
    else:
        echo(findings_text(found.findings))
        whole = "" if all(finding.node for finding in found.findings) else "; the file as a whole is refused"
        counts = ", ".join(f"{count} {name}" for name, count in found.count.items())
        echo(f"\n{found.target.title}: {counts}{whole}.")
        if not found.quantized:
            name = printable(target or found.target.name)
            echo(f"Nothing in it is quantized: onnxdfq compress {printable(found.file)} --target {name}")
        echo(found.basis)
    if short:
        nodes = [f"{finding.op_type or 'the file'} {finding.node}".strip() for finding in short]
        echo(sentence(f"onnxdfq: --require {require} is not met by {some(nodes, 5)}."), err=True)
        sys.exit(1)


@main.command(cls=Command)
@click.argument("folder", type=FILE)
@AS_JSON
def runs(folder: Path, as_json: bool) -> None:
    """List what a folder of --work-dir keeps, the newest first; what is listed may be deleted."""
    from onnxdfq.work.folder import kept_in

    found = kept_in(folder)
    if as_json:
        echo_json({"kept": [asdict(one) for one in found]})
        return
    rows = [("stage", "model", "state", "bytes", "changed", "file")]
    for one in found:
        state = "done" if one.done else "on its way"
        rows.append((one.stage, one.model, state, f"{one.bytes:,}", one.changed, one.file))
    echo(table_text([tuple(map(printable, row)) for row in rows]))


@main.command(cls=Command)
@click.argument("name", required=False)
@AS_JSON
def methods(name: str | None, as_json: bool) -> None:
    """List the methods; with NAME, what one needs and its settings, for --set NAME.FIELD=VALUE."""
    from onnxdfq.report.registry import describe_method, describe_methods

    if name is None:
        rows = describe_methods()
        if as_json:
            echo_json({"methods": rows})
        else:
            echo(table_text([(row["name"], row["needs"] or "-", row["summary"]) for row in rows]))
        return
    found = describe_method(name)
    if as_json:
        echo_json(found)
        return
    echo(f"{found['name']}: {found['summary']}\nneeds: {found['needs'] or 'nothing'}\n\n{found['description']}\n")
    settings = [(f"{name}.{key['name']}", key["kind"], key["default"]) for key in found["settings"]]
    echo(table_text([("setting", "values", "default"), *settings]))


@main.command(cls=Command)
@click.argument("name", required=False)
@AS_JSON
def targets(name: str | None, as_json: bool) -> None:
    """List the targets; with NAME, or the path of a target file, what one takes."""
    from onnxdfq.report.registry import describe_target, describe_targets

    if name is None:
        rows = describe_targets()
        if as_json:
            echo_json({"targets": rows})
        else:
            echo(table_text([(row["name"], row["title"], row["checked"]) for row in rows]))
        return
    found = describe_target(name)
    if as_json:
        echo_json(found)
    else:
        echo(inspection_text({key: str(value) for key, value in found.items()}))


if __name__ == "__main__":
    main()

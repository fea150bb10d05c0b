"""The command line: it parses, calls and prints. Whatever is heavy is imported inside the commands."""

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxdfq.errors import DfqError
from onnxdfq.progress import TerminalProgress

Command = TypeVar("Command", bound=Callable[..., Any])


class _Group(click.Group):
    """Turns what goes wrong into one sentence on stderr and an exit code: 2 the user's, 1 ours, 130 Ctrl-C."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DfqError as error:
            click.echo(f"onnxdfq: {error}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("\nonnxdfq: interrupted; nothing was written.", err=True)
            ctx.exit(130)
        except (click.exceptions.Exit, click.Abort, click.ClickException, BrokenPipeError):
            raise
        except Exception as error:  # whatever this is, it is our fault, and a traceback helps no user
            where = traceback.extract_tb(error.__traceback__)[-1]
            click.echo(
                f"onnxdfq: this is a fault of onnxdfq, please report it: {type(error).__name__} in "
                f"{Path(where.filename).name}:{where.lineno}: {' '.join(str(error).split())}",
                err=True,
            )
            ctx.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="onnxdfq")
def main() -> None:
    """Data-free quantization of ONNX models: a float model in, an integer QDQ model out."""


def _synthesis_options(command: Command) -> Command:
    """What `compress` and `synthesize` share."""
    options = [
        click.option(
            "-m",
            "--method",
            metavar="NAME",
            help="Images by dgh, zeroq or noise; dfq and dfmpc need none.  [default: dgh]",
        ),
        click.option("--effort", metavar="NAME", help="fast, standard or paper.  [default: fast]"),
        click.option("--images", type=int, metavar="N", help="How many images; the effort says by default."),
        click.option("--steps", type=int, metavar="N", help="Steps per image; the effort says by default."),
        click.option("--batch-size", type=int, metavar="N", help="Images optimised at once."),
        click.option("--seed", type=int, metavar="S", help="Same seed, same bytes.  [default: 0]"),
        click.option(
            "--normalize",
            metavar="HOW",
            help="How the network's inputs were normalised: imagenet, cifar10, none (0 to 1) or M1,M2,M3/S1,S2,S3.",
        ),
        click.option("--input-shape", multiple=True, metavar="[NAME=]1,C,H,W", help="Sizes that the file leaves open."),
        click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu or cuda."),
        click.option("--force", is_flag=True, help="Replace files that exist."),
        click.option(
            "--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else there."
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@_synthesis_options
@click.option("-b", "--bits", metavar="wXaY", help="Bits of weights and activations; w2/6 for dfmpc.  [default: w8a8]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="[default: MODEL.<bits>.onnx beside the input]")
@click.option(
    "--target",
    multiple=True,
    metavar="NAME",
    help="ort, openvino, tensorrt, qnn, vitisai, tflite, compact or generic; may be repeated.  [default: ort]",
)
@click.option(
    "--scheme",
    metavar="NAME",
    help="Scales: power-of-two, power-of-two-activations (of weights free), or free.  [default: power-of-two]",
)
@click.option(
    "--tuning",
    metavar="NAME",
    help="none, adaround (layer by layer) or brecq (block by block).  [default: none at 8-bit weights, brecq below]",
)
@click.option(
    "--equalize", is_flag=True, default=None, help="Even out the ranges of channels across layers first (DFQ)."
)
@click.option("--dfmpc", metavar="FORM", help="best, or paper for its very equations.  [default: best]")
@click.option("--clipping", metavar="NAME", help="Thresholds by mse, aciq or max.  [default: mse]")
@click.option("--split-channels", type=float, metavar="SHARE", help="Split this share of outlier channels (OCS).")
@click.option(
    "--shift-negative", is_flag=True, default=None, help="Shift small negative activations to unsigned (SNC)."
)
@click.option("--calibration", type=click.Path(path_type=Path), metavar="FILE", help="Images of your own instead.")
@click.option(
    "--save-images", type=click.Path(path_type=Path), metavar="FILE", help="Keep the synthesised images (.npz)."
)
@click.option("--budget", metavar="WHAT", help="size=0.5MB or bops=1.2G: each layer gets its own bits, --bits at most.")
@click.option("--plan", type=click.Path(path_type=Path), metavar="FILE", help="A TOML file that pins bits of layers.")
@click.option("--save-plan", type=click.Path(path_type=Path), metavar="FILE", help="Write the bits of all layers.")
@click.option("--evaluate", type=click.Path(path_type=Path), metavar="DATA", help="Labelled images to measure on.")
@click.option(
    "--recipe", type=click.Path(path_type=Path), metavar="FILE", help="A TOML file of settings; flags overrule it."
)
def compress(
    model: Path,
    output: Path | None,
    calibration: Path | None,
    save_images: Path | None,
    evaluate: Path | None,
    recipe: Path | None,
    plan: Path | None,
    save_plan: Path | None,
    target: tuple[str, ...],
    input_shape: tuple[str, ...],
    device: str,
    force: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Quantize a float ONNX model without data."""
    from onnxdfq.model_file import parse_input_shapes
    from onnxdfq.pipeline.compression import compress as run
    from onnxdfq.recipe.recipe import Recipe

    if target:
        settings["target"] = ",".join(target)
    result = run(
        model,
        output=output,
        recipe=None if recipe is None else Recipe.load(recipe),
        calibration=calibration,
        evaluate=evaluate,
        device=device,
        input_shape=parse_input_shapes(input_shape),
        save_images=save_images,
        plan=plan,
        save_plan=save_plan,
        force=force,
        progress=TerminalProgress,
        **{key: value for key, value in settings.items() if value is not None},
    )
    several = {name: {"output": str(file.path), **file.metrics} for name, file in result.written.items()}
    if as_json:
        targets = {"targets": several} if len(several) > 1 else {}
        click.echo(json.dumps({"output": str(result.path), **result.metrics, **targets, "notes": list(result.notes)}))
        return
    for note in result.notes:
        click.echo(f"note: {note}", err=True)
    if len(several) == 1:
        click.echo(_summary(result.metrics))
        click.echo(f"written: {result.path}")
        return
    own = {key for file in result.written.values() for key in file.metrics}
    click.echo(_summary({key: value for key, value in result.metrics.items() if key not in own}))
    for name, file in result.written.items():
        click.echo(f"\n{name}\n{_summary(file.metrics)}\nwritten: {file.path}")


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The .npz file to write.")
@_synthesis_options
def synthesize(
    model: Path,
    output: Path,
    input_shape: tuple[str, ...],
    device: str,
    force: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Make calibration images from a model's BatchNormalization statistics."""
    from onnxdfq.model_file import parse_input_shapes
    from onnxdfq.pipeline.compression import synthesize as run

    result = run(
        model,
        output=output,
        device=device,
        input_shape=parse_input_shapes(input_shape),
        force=force,
        progress=TerminalProgress,
        **{key: value for key, value in settings.items() if value is not None},
    )
    if as_json:
        click.echo(json.dumps({"output": str(output), **result.metrics}))
        return
    click.echo(_summary(result.metrics))
    click.echo(f"written: {output}")


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--against", type=click.Path(path_type=Path), metavar="FLOAT", help="The float model to compare with.")
@click.option("--normalize", metavar="HOW", help="As for compress; a model that onnxdfq wrote remembers it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else there.")
def evaluate(model: Path, data: Path, against: Path | None, normalize: str | None, as_json: bool) -> None:
    """Measure a model on images: DATA is an .npz file or a folder of class folders."""
    from onnxdfq.evaluation.evaluation import Session, load_evaluation_data
    from onnxdfq.evaluation.evaluation import evaluate as run
    from onnxdfq.evaluation.saturation import saturation_note

    session = Session(model)
    images = load_evaluation_data(data, session, normalize)
    original = None if against is None else Session(against)
    measured = asdict(run(session, images, against=original, progress=TerminalProgress("evaluating")))
    note = saturation_note(model, exact=session.exact)
    if as_json:
        found = {key: value for key, value in measured.items() if value is not None}
        click.echo(json.dumps(found | ({} if note is None else {"notes": [note]})))
        return
    if note is not None:
        click.echo(f"note: {note}", err=True)
    click.echo(_summary(measured))


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--pairs", is_flag=True, help="Show which layers dfmpc would give low bits, and who pays for each.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else there.")
def inspect(model: Path, pairs: bool, as_json: bool) -> None:
    """Show what a model holds: operators, BatchNormalization, quantization, what made it."""
    from onnxdfq.report.inspection import inspect as run
    from onnxdfq.report.inspection import layer_pairs

    if pairs:
        _show_pairs(layer_pairs(model), as_json)
        return
    found = asdict(run(model))
    if as_json:
        click.echo(json.dumps(found))
        return
    for key, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name}: {entry}" for name, entry in value.items())
        elif isinstance(value, list):
            value = ", ".join(value)
        click.echo(f"{key.replace('_', ' '):20} {value or '-'}")


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--target", metavar="NAME", help="The runtime to judge for.  [default: the one it was written for, or ort]"
)
@click.option(
    "--require",
    metavar="WHAT",
    help="Exit with 1 unless every node is an integer one; `integer:Conv,Gemm` asks it of these operators alone, and "
    "`exact` that no integer kernel saturates on any processor.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, and nothing else there.")
def lint(model: Path, target: str | None, require: str | None, as_json: bool) -> None:
    """Tell what a runtime will do with each node of a model: compute on integers, in float, or refuse the file."""
    from onnxdfq.report.linting import falling_short
    from onnxdfq.report.linting import lint as run

    found = run(model, target=target)
    short = () if require is None else falling_short(found.findings, require)
    if as_json:
        entries = [asdict(finding) for finding in found.findings]
        head = {"file": found.file, "target": found.target.name, "verified": found.target.verified}
        click.echo(json.dumps({**head, "basis": found.basis, **found.count, "findings": entries}))
    else:
        click.echo(_findings(found.findings))
        whole = "" if all(finding.node for finding in found.findings) else "; the file as a whole is refused"
        counts = ", ".join(f"{count} {name}" for name, count in found.count.items())
        click.echo(f"\n{found.target.title}: {counts}{whole}.")
        if not found.quantized:
            click.echo(f"Nothing in it is quantized: onnxdfq compress {found.file} --target {found.target.name}")
        click.echo(found.basis)
    if short:
        what = ", ".join(f"{finding.op_type or 'the file'} {finding.node}".strip() for finding in short[:5])
        more = f" and {len(short) - 5} more" if len(short) > 5 else ""
        click.echo(f"onnxdfq: --require {require} is not met by {what}{more}.", err=True)
        sys.exit(1)


def _show_pairs(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(found))
        return
    for name, pair in found["low"].items():
        payers = ", ".join(pair["paid_by"]) or "nothing"
        click.echo(f"low   {name}  paid for by {payers}" + ("" if pair["legal"] else f"  ({pair['why_not']})"))
    for name, reason in found["high"].items():
        click.echo(f"high  {name}" + (f"  {reason}" if reason else ""))


def _findings(findings: Sequence[Any]) -> str:
    """One line a node: verdict, operator, name and why; what to change on a line of its own."""
    widths = [max([len(getattr(finding, key)) for finding in findings], default=0) for key in ("op_type", "node")]
    lines = []
    for finding in findings:
        name = finding.node or "(the whole file)"
        lines.append(
            f"{finding.verdict:8} {finding.op_type:{widths[0]}}  {name:{widths[1]}}  {finding.reason}".rstrip()
        )
        if finding.advice:
            lines.append(f"{'':8} {'':{widths[0]}}  → {finding.advice}")
    return "\n".join(lines) or "There is no linear, element-wise, pooling or activating node, and no Concat."


def _summary(metrics: Any) -> str:
    """The metrics that are there, one a line; shares as percentages."""
    lines = []
    for key, label, kind in _LABELS:
        value = metrics.get(key)
        if value is not None:
            lines.append(f"{label:34} {kind(value)}")
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


_LABELS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("images", "images", str),
    ("bn_distance", "distance from the BN statistics", "{:.4f}".format),
    ("confident", "images with a class above 0.9", _percent),
    ("batch_norms_folded", "BatchNormalizations folded", str),
    ("bytes_float", "bytes, float", "{:,}".format),
    ("bytes", "bytes, compressed", "{:,}".format),
    ("weight_bytes", "bytes of packed weights and scales", "{:,}".format),
    ("bit_operations", "bit operations per image", "{:,}".format),
    ("agreement_images", "same answer on synthetic images", _percent),
    ("sqnr_db_images", "signal to noise on them", "{:.1f} dB".format),
    ("count", "evaluated on", "{:,} images".format),
    ("top1_float", "accuracy, float", _percent),
    ("top1", "accuracy", _percent),
    ("agreement", "same answer as the float model", _percent),
    ("sqnr_db", "signal to noise", "{:.1f} dB".format),
    ("seconds", "seconds", str),
)

if __name__ == "__main__":
    sys.exit(main())

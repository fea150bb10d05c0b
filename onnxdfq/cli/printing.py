"""What the commands print."""

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from onnxdfq.shown import sentence, shortened
from passes.graph.text import printable

LONGEST_NAME = 100  # of a node or a value in a table


def echo(text: str, *, err: bool = False) -> None:
    """Lines on stdout or stderr. All that a command prints goes through here, and nothing in it controls a terminal."""
    stream = sys.stderr if err else sys.stdout
    lines = "\n".join(map(printable, text.split("\n")))
    encoding = stream.encoding or "utf-8"
    click.echo(lines.encode(encoding, "backslashreplace").decode(encoding), file=stream)  # noqa: TID251


class LogFormatter(logging.Formatter):
    """Of what `--verbose` logs: one line a record."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return sentence(super().format(record))


def echo_json(values: Mapping[str, Any]) -> None:
    """One JSON object on stdout."""
    echo(json.dumps(values))


def echo_notes(notes: Sequence[str]) -> None:
    """Notes on stderr, a line each."""
    for note in notes:
        echo(sentence(f"note: {note}"), err=True)


def echo_float(result: Any, *, as_json: bool) -> None:
    """What came of a command that writes one float model."""
    if as_json:
        echo_json({"output": str(result.path), "method": result.method, **result.metrics, "notes": list(result.notes)})
        return
    echo_notes(result.notes)
    echo(summary(result.metrics))
    echo(written_text(result.path))


def summary(metrics: Mapping[str, Any]) -> str:
    """The metrics that are there, one a line; shares as percentages."""
    lines = []
    for key, label, kind in _LABELS:
        value = metrics.get(key)
        if value is not None:
            lines.append(f"{label:34} {kind(value)}")
    return "\n".join(lines)


def findings_text(findings: Sequence[Any]) -> str:
    """One line a node: verdict, operator, name and why; what to change on a line of its own."""
    names = [(_name(finding.op_type), _name(finding.node or "(the whole file)")) for finding in findings]
    widths = [max(map(len, column)) for column in zip(*names, strict=True)]
    lines = []
    for finding, (op_type, name) in zip(findings, names, strict=True):
        lines.append(
            f"{finding.verdict:8} {op_type:{widths[0]}}  {name:{widths[1]}}  {sentence(finding.reason)}".rstrip()
        )
        if finding.advice:
            lines.append(f"{'':8} {'':{widths[0]}}  → {sentence(finding.advice)}")
    return "\n".join(lines) or "No node computes anything."


WORST = 10  # layers that a terminal shows


def diagnosis_text(found: Any) -> str:
    """The verdict, the findings with their remedies, and the worst layers."""
    level = "without any noise" if found.sqnr_db is None else f"{found.sqnr_db:.1f} dB"
    level = "NaN or infinity comes out" if found.not_finite else level
    against = f"against {found.against}" if found.against else "against itself without quantizers"
    lines = [f"{sentence(found.file)}, a file of {sentence(found.by)}: {level}, {sentence(against)}."]
    lines.append(f"Measured on {found.samples} inputs ({found.data}); kernels of the target {found.target}.")
    for place, finding in enumerate(found.findings, start=1):
        lines.append(f"\n{place}. {_name(finding.layer)}: {sentence(finding.cause)} [{finding.kind}]")
        lines.extend(f"   → {sentence(remedy)}" for remedy in finding.remedies)
    if not found.findings:
        lines.append("\nNothing stands out.")
    rows = [("layer", "operator", "bits", "alone", "all but", "kernel")]
    for layer in found.layers[:WORST]:
        bits = "/".join("-" if width is None else str(width) for width in (layer.weight_bits, layer.activation_bits))
        alone, all_but = (_level(one, estimated=layer.estimated) for one in (layer.alone_db, layer.all_but_db))
        rows.append((_name(layer.name), _name(layer.op_type), bits, alone, all_but, layer.kernel or "-"))
    more = len(found.layers) - WORST
    lines.append(f"\n{table_text(rows)}" + (f"\n... and {more} layers more (--json)" if more > 0 else ""))
    return "\n".join(lines)


def _level(level: float | None, *, estimated: bool) -> str:
    return "-" if level is None else f"{'≈ ' if estimated else ''}{level:.1f} dB"


def pairs_text(found: Mapping[str, Any]) -> str:
    """Which layers get the low bits, and who pays for each."""
    lines = []
    for name, pair in found["low"].items():
        payers = ", ".join(map(_name, pair["paid_by"])) or "nothing"
        why_not = "" if pair["legal"] else f"  ({sentence(str(pair['why_not']))})"
        lines.append(f"low   {_name(name)}  paid for by {payers}{why_not}")
    for name, reason in found["high"].items():
        lines.append(f"high  {_name(name)}" + (f"  {sentence(reason)}" if reason else ""))
    return "\n".join(lines)


def inspection_text(found: Mapping[str, Any]) -> str:
    """One line a fact."""
    lines = []
    for key, value in found.items():
        if isinstance(value, dict):
            spoken = key == "quantized"  # elsewhere the names are the file's own
            value = ", ".join(
                f"{name.replace('_', ' ') if spoken else _name(name)}: {_entry(entry)}" for name, entry in value.items()
            )
        elif isinstance(value, list):
            value = ", ".join(map(_name, value))
        elif isinstance(value, str) and key != "file":
            value = sentence(value)
        if key == "folded_batch_norms" and not value and not found["batch_norms"]:
            value = "none seen; whether there were any cannot be told from the file"
        lines.append(f"{key.replace('_', ' '):20} {value or '-'}")
    return "\n".join(lines)


def _entry(value: Any) -> Any:
    """Of a fact that has several. True and False are Python's words, not the reader's."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (" and ".join(map(str, value)) or "-") if isinstance(value, list) else sentence(str(value))


def _name(text: str) -> str:
    """A name of a file's own, for one place of a table."""
    return shortened(printable(text), LONGEST_NAME)


def table_text(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest entry."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def runtimes_text(rows: Sequence[Any]) -> str:
    """How far each runtime is from the plain reading of a file, one a line."""
    table: list[Sequence[str]] = [("runtime", "greatest difference", "numbers half a step apart", "equal classes")]
    for row in rows:
        answers = "-" if row.answers is None else _percent(row.answers)
        table.append((row.runtime, f"{row.steps:.2f} steps", _percent(row.share), answers))
    return table_text(table)


def card_text(card: Mapping[str, Any]) -> str:
    """What each model of a zoo says of images, one a line."""
    rows: list[Sequence[str]] = [("model", "distance", "above 0.9", "entropy")]
    for model in card["models"]:
        numbers = [model[key] for key in ("bn_distance", "confident", "entropy")]
        rows.append((_name(model["name"]), *("-" if number is None else f"{number:.4f}" for number in numbers)))
    whole = [card[key] for key in ("confident_mean", "confident_std", "diversity")]
    mean, deviation, diversity = ("-" if number is None else f"{number:.4f}" for number in whole)
    return f"{table_text(rows)}\nabove 0.9: {mean} ± {deviation}; diversity {diversity}"


def written_text(path: Path | None) -> str:
    """Where a result lies, in a line of its own."""
    return f"written: {printable(str(path))}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


_LABELS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ("images", "images", str),
    ("bn_distance", "distance from the BN statistics", "{:.4f}".format),
    ("confident", "images with a class above 0.9", _percent),
    ("batch_norms_folded", "BatchNormalizations folded", str),
    ("layer_channels", "channels of layers", "{:,}".format),
    ("layer_channels_removed", "of these removed", "{:,}".format),
    ("weights_float", "weights of layers, before", "{:,}".format),
    ("weights", "weights that are not zero", "{:,}".format),
    ("macs_float", "multiplications a sample, before", "{:,}".format),
    ("macs", "multiplications a sample", "{:,}".format),
    ("bytes_float", "bytes, float", "{:,}".format),
    ("bytes", "bytes, compressed", "{:,}".format),
    ("weight_bytes", "bytes of packed weights and scales", "{:,}".format),
    ("bit_operations", "bit operations per image", "{:,}".format),
    ("layers_in_blocks", "layers with a scale for every block", str),
    ("drop", "points of answers that change", "{:.2f}".format),
    ("layers_float", "layers that stay float for that", str),
    ("nodes_integer", "nodes that compute on integers", str),
    ("nodes_float", "nodes that stay float", str),
    ("agreement_images", "same answer on what calibrated", _percent),
    ("sqnr_db_images", "signal to noise on them", "{:.1f} dB".format),
    ("held_back", "inputs held back to judge by", str),
    ("agreement_held_back", "same answer on them", _percent),
    ("sqnr_db_held_back", "signal to noise on them", "{:.1f} dB".format),
    ("verdict", "verdict", str),
    ("count", "evaluated on", "{:,} samples".format),
    ("top1_float", "accuracy, float", _percent),
    ("top1", "accuracy", _percent),
    ("agreement", "same answer as the float model", _percent),
    ("sqnr_db", "signal to noise", "{:.1f} dB".format),
    ("not_finite", "NaN or infinite, unlike the float's", "{:,} numbers".format),
    ("seconds", "seconds", str),
    ("peak_memory", "peak memory", lambda count: f"{count / 2**20:,.0f} MiB"),
)

"""`page`: a report, or two side by side, as HTML."""

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from onnxdfq.report.diagnosis.result import Diagnosis, Finding, LayerReport
from onnxdfq.report.page.drawing import HEIGHT, WIDTH, drawing_of
from onnxdfq.report.run import FileReport, RunReport
from onnxdfq.shown import sentence, shortened
from passes.graph.text import printable

DRAWN = 250  # layers with histograms, the worst: a file stays below 2 MB
WORST = 3
LONGEST = 120  # characters of a name in a table; its whole is in a tooltip
BY_BITS = "more bits for this layer (--plan), or leave it in float (--keep-float)"


@dataclass(frozen=True, kw_only=True)
class Worst:
    """A layer that costs much, why, and what to try."""

    layer: LayerReport
    cause: str
    remedy: str


def page(report: RunReport) -> str:
    """One run as an HTML file."""
    return _render("run.html.j2", report=report, title=f"onnxdfq: {report.source}")


def compared_page(one: RunReport, other: RunReport) -> str:
    """Two runs side by side, by layers of one name."""
    return _render("compare.html.j2", one=one, other=other, title="onnxdfq: two runs", rows=_rows(one, other))


def worst_layers(diagnosis: Diagnosis) -> tuple[Worst, ...]:
    """The three that cost most, each with its first finding's remedy, where there is one."""
    found: dict[str, Finding] = {}
    for finding in diagnosis.findings:
        found.setdefault(finding.layer, finding)
    measured = [layer for layer in diagnosis.layers if layer.alone_db is not None][:WORST]
    return tuple(
        Worst(
            layer=layer,
            cause=found[layer.name].cause if layer.name in found else "rounding, and nothing that stands out",
            remedy=found[layer.name].remedies[0] if layer.name in found else BY_BITS,
        )
        for layer in measured
    )


@dataclass(frozen=True, kw_only=True)
class Row:
    """A layer of two runs; None where one of them lacks it. change: in dB of the layer alone; None where unknown.
    estimated: whether one of both is."""

    name: str
    one: LayerReport | None
    other: LayerReport | None
    change: float | None
    estimated: bool


def _rows(one: RunReport, other: RunReport) -> list[Row]:
    left, right = _layers(one), _layers(other)
    rows = []
    for name in dict.fromkeys([*left, *right]):
        first, second = left.get(name), right.get(name)
        levels = [None if layer is None else layer.alone_db for layer in (first, second)]
        change = None if levels[0] is None or levels[1] is None else levels[1] - levels[0]
        estimated = any(layer is not None and layer.estimated for layer in (first, second))
        rows.append(Row(name=name, one=first, other=second, change=change, estimated=estimated))
    return rows


def _layers(report: RunReport) -> dict[str, LayerReport]:
    diagnosis = next((file.diagnosis for file in report.files if file.diagnosis is not None), None)
    return {} if diagnosis is None else {layer.name: layer for layer in diagnosis.layers}


def _render(template: str, **values: object) -> str:
    style, script = _asset("style.css"), _asset("script.js")
    return (
        _environment()
        .get_template(template)
        .render(
            **values,
            # Both are ours, and hold no name of a model's. The policy lets nothing else run, whatever a name holds.
            style=Markup(style),
            script=Markup(script),
            policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
            "base-uri 'none'; form-action 'none'",
        )
    )


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("onnxdfq.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "db": _db,
        "number": _number,
        "share": _share,
        "size": _size,
        "shown": _shown,
        "shown_text": sentence,
        "bits": _bits,
    }
    made.globals |= {
        "worst_layers": worst_layers,
        "drawing_of": drawing_of,
        "integer_share": integer_share,
        "WIDTH": WIDTH,
        "HEIGHT": HEIGHT,
        "DRAWN": DRAWN,
    }
    return made


def integer_share(file: FileReport) -> float | None:
    """Of the nodes that compute, as the target will compute them."""
    found = file.diagnosis
    count = 0 if found is None else found.nodes_integer + found.nodes_float
    return None if found is None or not count else found.nodes_integer / count


@cache
def _asset(name: str) -> str:
    return (files("onnxdfq.report.page") / "templates" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _db(level: float | None) -> str:
    return "–" if level is None else f"{level:.1f}"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _size(count: int | None) -> str:
    if count is None:
        return "–"
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _shown(text: str) -> str:
    """A name that no control character is left in, cut in its middle."""
    return shortened(printable(text), LONGEST)


def _bits(layer: LayerReport) -> str:
    return "/".join("–" if width is None else str(width) for width in (layer.weight_bits, layer.activation_bits))

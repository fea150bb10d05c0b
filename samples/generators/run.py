"""What generators are worth: GDFQ and EnhancingDFQ at equal steps: `python -m samples.generators.run`, from the root.

Names of rows measure these alone and keep the others. Evaluation images are used for evaluation only.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxdfq
from onnxdfq.methods import Dgh, Edfq, Gdfq, Genie, ZeroQ
from onnxdfq.methods.method import Synthesis
from onnxdfq.progress import TerminalProgress
from samples.accuracy.run import CASES, DATA, accuracies
from samples.record import read_rows, write_results

RESULTS = Path(__file__).with_name("results.json")
MODEL = "resnet20_cifar10jpeg"
SEED = 0
EQUAL: dict[str, Any] = {"warm_up": 200, "steps": 300}
PARTS: dict[str, Any] = {"warm_up": 100, "steps": 100}  # of the rows that leave out a part, or add one


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row. what: its name in the tables. effort: `paper` takes the steps of a generator as they are asked for."""

    what: str
    method: Gdfq | Synthesis
    bits: str = "w4a4"
    scheme: str = "paper"
    tuning: str = "none"
    effort: str = "paper"


def _both(bits: str, scheme: str, tuning: str = "none") -> Iterator[Setting]:
    for kind in (Gdfq, Edfq):
        yield Setting(what=kind.name, method=kind(**EQUAL), bits=bits, scheme=scheme, tuning=tuning)


ROWS = {
    "w4a4": tuple(_both("w4a4", "paper")),
    "w3a3": tuple(_both("w3a3", "paper")),
    "shipped": (*_both("w4a4", "power-of-two"), *_both("w3a3", "power-of-two")),
    "gdfq": tuple(
        Setting(what=f"gdfq, {what}", method=Gdfq(**PARTS, **without), bits="w3a3")
        for what, without in {
            "as it is": {},
            "no label loss": {"label": 0.0},
            "no statistics loss": {"statistics": 0.0},
            "separate training": {"separate": True},
            "student without labels": {"student_label": 0.0},
            "mixed labels (Qimera)": {"mixed": 0.4},
            "margins (AdaDFQ)": {"margins": True},
        }.items()
    ),
    "edfq": tuple(
        Setting(what=f"edfq, {what}", method=Edfq(**PARTS, **without), bits="w3a3")
        for what, without in {
            "as it is": {},
            "no label embeddings": {"label_embeddings": False},
            "no features mixer": {"features_mixer": False},
            "no flow attention": {"flow_attention": False},
            "no similarity losses": {"likeness": 0.0, "features": 0.0},
        }.items()
    ),
    "images": tuple(
        Setting(what=f"{method.name}, then brecq", method=method, bits="w3a3", tuning="brecq", effort="fast")
        for method in (Genie(), Dgh(), ZeroQ())
    ),
}


def measure(setting: Setting) -> Iterator[dict[str, Any]]:
    """Compress once, and evaluate on each test set."""
    case = CASES[MODEL]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compressed.onnx"
        result = onnxdfq.compress(
            DATA / "models" / f"{MODEL}.onnx",
            output=path,
            method=setting.method,
            bits=setting.bits,
            scheme=setting.scheme,  # type: ignore[arg-type]
            tuning=setting.tuning,
            normalize=case.normalize,
            images=512,
            effort=setting.effort,
            seed=SEED,
            progress=TerminalProgress,
        )
        for found in accuracies(path, MODEL, case):
            row = {
                "model": MODEL,
                "what": setting.what,
                "bits": setting.bits,
                "scheme": setting.scheme,
                "tuning": setting.tuning,
                "settings": asdict(setting.method),
                "seed": SEED,
                **found,
            }
            row |= {key: result.metrics.get(key) for key in ("similarity_by_label", "bn_distance", "seconds")}
            row |= {key: result.metrics.get(key) for key in ("peak_memory", "loss_curve")}
            print(f"\n{setting.what:30} {setting.bits} {setting.scheme:13} drop {row['drop_points']:6.2f}", flush=True)
            yield row


def table(rows: list[dict[str, Any]]) -> str:
    """Drops as the docs show them."""
    lines = ["| method | quantizer | bits | similarity | drop |", "|---|---|---|---|---|"]
    for row in rows:
        alike = "–" if row["similarity_by_label"] is None else f"{row['similarity_by_label']:.2f}"
        lines.append(f"| {row['what']} | {row['scheme']} | {row['bits']} | {alike} | {row['drop_points']:.2f} |")
    return "\n".join(lines)


def main(names: list[str]) -> None:
    """Measure the named groups of rows, or all; written after each, so that a broken run leaves what it has."""
    known = read_rows(RESULTS)
    rows = {(row["what"], row["bits"], row["scheme"]): row for row in known}
    for setting in (setting for name in names or ROWS for setting in ROWS[name]):
        for row in measure(setting):
            rows[setting.what, setting.bits, setting.scheme] = row
            write_results(RESULTS, list(rows.values()))
    print(table(list(rows.values())))


if __name__ == "__main__":
    main(sys.argv[1:])

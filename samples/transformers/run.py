"""A vision transformer without data: `python -m samples.transformers.run [METHOD ...]`, from the project's root.

Evaluation images are used for evaluation only. The images of a method are made once and shared by its rows: one
`onnxdfq compress` with the same settings makes the same ones.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import onnxdfq
from onnxdfq.evaluation.evaluation import Session, evaluate, load_evaluation_data
from onnxdfq.methods import DeadLeaves, Psaq
from onnxdfq.methods.method import IMAGE_COUNT, Synthesis
from onnxdfq.progress import TerminalProgress
from samples.accuracy.run import DATA
from samples.record import write_results

RESULTS = Path(__file__).with_name("psaq.json")
MODEL, NORMALIZE, EFFORT, SEED = DATA / "models" / "vit_cifar10.onnx", "cifar10", "fast", 0
EVALUATED, FIRST = "cifar10jpeg_test", 2000
METHODS: dict[str, Synthesis] = {"psaq": Psaq(), "dead-leaves": DeadLeaves()}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of each method. tuning: None is the default of the bits."""

    bits: str
    scheme: str = "power-of-two"
    tuning: str | None = None


SETTINGS = (Setting(bits="w8a8"), Setting(bits="w4a8"), Setting(bits="w4a4"))


def make_images(name: str, path: Path) -> float:
    """Write the images of a method; the seconds it took."""
    made = onnxdfq.synthesize(
        MODEL,
        method=METHODS[name],
        output=path,
        normalize=NORMALIZE,
        effort=EFFORT,
        seed=SEED,
        progress=TerminalProgress,
    )
    return float(made.metrics["seconds"] or 0)


def evaluated(folder: Path) -> Path:
    """The first images of the test set, as a file."""
    path = folder / "test.npz"
    with np.load(DATA / f"{EVALUATED}.npz") as data:
        np.savez(path, images=data["images"][:FIRST], labels=data["labels"][:FIRST])
    return path


def measure(name: str, setting: Setting, images: Path, seconds: float, test: Path) -> dict[str, Any]:
    """Compress once, and evaluate. seconds: what the images took."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compressed.onnx"
        result = onnxdfq.compress(
            MODEL,
            output=path,
            calibration=images,
            images=IMAGE_COUNT[EFFORT],
            effort=EFFORT,
            normalize=NORMALIZE,
            seed=SEED,
            bits=setting.bits,
            scheme=setting.scheme,
            progress=TerminalProgress,
            **({} if setting.tuning is None else {"tuning": setting.tuning}),
        )
        session = Session(path)
        found = asdict(evaluate(session, load_evaluation_data(test, session, NORMALIZE), against=Session(MODEL)))
    return {
        "model": MODEL.stem,
        "images": name,
        "effort": EFFORT,
        "seed": SEED,
        **asdict(setting),
        "evaluated_on": f"{EVALUATED}, the first {FIRST}",
        "drop_points": round(100 * (found["top1_float"] - found["top1"]), 2),
        **found,
        "bytes": result.metrics["bytes"],
        "seconds_images": seconds,
        "seconds": result.metrics["seconds"],
    }


def rows(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """All rows of these methods, width by width."""
    with tempfile.TemporaryDirectory() as folder:
        test = evaluated(Path(folder))
        paths = {name: Path(folder) / f"{name}.npz" for name in names}
        seconds = {name: make_images(name, path) for name, path in paths.items()}
        for setting, name in product(SETTINGS, names):
            row = measure(name, setting, paths[name], seconds[name], test)
            print(f"{name:12} {setting.bits} {setting.scheme:13} drop {row['drop_points']:6.2f}", flush=True)
            yield row


def table(found: list[dict[str, Any]]) -> str:
    """The rows as the docs show them."""
    lines = ["| images | bits | thresholds | float | compressed | drop |", "|---|---|---|---|---|---|"]
    for row in found:
        figures = f"{100 * row['top1_float']:.2f} | {100 * row['top1']:.2f} | {row['drop_points']:.2f}"
        lines.append(f"| {row['images']} | {row['bits']} | {row['scheme']} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """All rows, or those of the methods that are named, in the place of the ones that are there; written after each, so
    that a broken run leaves what it has."""
    names = sys.argv[1:] or list(METHODS)
    old = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else []
    found = [row for row in old if row["images"] not in names]
    for row in rows(names):
        found.append(row)
        write_results(RESULTS, found)
    print(table(found))


if __name__ == "__main__":
    main()

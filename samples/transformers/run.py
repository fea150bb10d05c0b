"""A vision transformer without data: `python -m samples.transformers.run [METHOD[:BITS] ...]`, from the project's root.

Evaluation images are used for evaluation only. The images of a method are made once and shared by its rows: one
`onnxdfq compress` with the same settings makes the same ones.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import onnxdfq
from onnxdfq.evaluation.evaluation import Session, evaluate, load_evaluation_data
from onnxdfq.methods import DeadLeaves, Edfq, Psaq
from onnxdfq.methods.method import IMAGE_COUNT, Synthesis
from onnxdfq.progress import TerminalProgress
from samples.accuracy.run import DATA
from samples.record import read_rows, write_results

RESULTS = Path(__file__).with_name("psaq.json")
MODEL, NORMALIZE, EFFORT, SEED = DATA / "models" / "vit_cifar10.onnx", "cifar10", "fast", 0
EVALUATED, FIRST = "cifar10jpeg_test", 2000
IMAGES: dict[str, Synthesis] = {"psaq": Psaq(), "dead-leaves": DeadLeaves()}
GENERATOR = Edfq(warm_up=100, steps=100)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of each method. tuning: None is the default of the bits."""

    bits: str
    scheme: str = "power-of-two"
    tuning: str | None = None


SETTINGS = (Setting(bits="w8a8"), Setting(bits="w4a8"), Setting(bits="w4a4"))
OF_GENERATOR = (Setting(bits="w4a8", tuning="none"), Setting(bits="w4a4", tuning="none"))
ROWS = [(name, setting) for setting in SETTINGS for name in IMAGES] + [("edfq", setting) for setting in OF_GENERATOR]


def make_images(name: str, path: Path) -> float:
    """Write the images of a method; the seconds it took."""
    made = onnxdfq.synthesize(
        MODEL,
        method=IMAGES[name],
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


def measure(name: str, setting: Setting, images: Path | None, test: Path) -> dict[str, Any]:
    """Compress once, and evaluate. images: None where a generator makes them while the quantized network learns."""
    made: dict[str, Any] = {"calibration": images, "images": IMAGE_COUNT[EFFORT], "effort": EFFORT}
    if images is None:
        made = {"method": GENERATOR, "images": IMAGE_COUNT[EFFORT], "effort": "paper"}  # takes its steps as they are
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compressed.onnx"
        result = onnxdfq.compress(
            MODEL,
            output=path,
            normalize=NORMALIZE,
            seed=SEED,
            bits=setting.bits,
            scheme=setting.scheme,
            progress=TerminalProgress,
            **made,
            **({} if setting.tuning is None else {"tuning": setting.tuning}),
        )
        session = Session(path)
        found = asdict(evaluate(session, load_evaluation_data(test, session, NORMALIZE), against=Session(MODEL)))
    return {
        "model": MODEL.stem,
        "images": name,
        "effort": made["effort"],
        "seed": SEED,
        **asdict(setting),
        "evaluated_on": f"{EVALUATED}, the first {FIRST}",
        "drop_points": round(100 * (found["top1_float"] - found["top1"]), 2),
        **found,
        "bytes": result.metrics["bytes"],
        "seconds": result.metrics["seconds"],
    }


def rows(wanted: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Those whose METHOD or METHOD:BITS is wanted."""
    with tempfile.TemporaryDirectory() as folder:
        test, seconds = evaluated(Path(folder)), dict[str, float]()
        for name, setting in ROWS:
            if name not in wanted and f"{name}:{setting.bits}" not in wanted:
                continue
            path = Path(folder) / f"{name}.npz" if name in IMAGES else None
            if path is not None and not path.exists():
                seconds[name] = make_images(name, path)
            row = measure(name, setting, path, test) | ({"seconds_images": seconds[name]} if name in seconds else {})
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
    """All rows, or those that are named, in the place of the ones that are there; written after each, so that a broken
    run leaves what it has."""
    old = read_rows(RESULTS)
    found = {(row["images"], row["bits"]): row for row in old}
    for row in rows(sys.argv[1:] or [*IMAGES, "edfq"]):
        found[row["images"], row["bits"]] = row
        write_results(RESULTS, list(found.values()))
    print(table(list(found.values())))


if __name__ == "__main__":
    main()

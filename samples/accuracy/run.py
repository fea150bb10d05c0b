"""Accuracy of compressed real networks, data-free: `python -m samples.accuracy.run`, from the project's root.

Evaluation images are used for evaluation only. The column `real` calibrates on training images instead, as a reference.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import onnxdfq
from onnxdfq.evaluation.evaluation import Session, evaluate, load_evaluation_data
from onnxdfq.progress import TerminalProgress
from samples.record import write_results

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
RESULTS = Path(__file__).with_name("results.json")
RAW = "0/0.00392156862745098"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One network, how its inputs were normalised, what it is evaluated on, and the training images for reference.

    evaluate: names of test sets. seeds: so many runs, whose mean is shown; of few images, those that change sides say
    little about a single one.
    """

    normalize: str
    evaluate: tuple[str, ...]
    reference: str | None
    seeds: int = 1


LOSSLESS = ("cifar10_test932",)
JPEG: dict[str, Any] = {"evaluate": ("cifar10jpeg_test",), "reference": "cifar10jpeg_train10k"}
CASES = {
    "resnet20_cifar10jpeg": Case(normalize="imagenet", **JPEG),
    "resnet56_cifar10jpeg": Case(normalize="imagenet", **JPEG),
    "resnet20_cifar10": Case(normalize="imagenet", evaluate=LOSSLESS, reference=None),
    "resnet56_cifar10": Case(normalize="imagenet", evaluate=LOSSLESS, reference=None),
    # the only one trained on lossless images that knows those of the JPEG copy nearly as well (87.0 of 89.2 %)
    "convmixer_cifar10": Case(normalize="cifar10", evaluate=(*LOSSLESS, "cifar10jpeg_test"), reference=None, seeds=3),
    "resnet8_cifar10": Case(normalize=RAW, evaluate=LOSSLESS, reference=None, seeds=3),
    "mobilenetv1_vww": Case(normalize="none", evaluate=("vww_coco256",), reference=None, seeds=3),
}
PLAIN: dict[str, Any] = {"bits": "w8a8", "method": "dgh"}
# the first network carries the comparison of methods, schemes and widths; the others show that it holds elsewhere
FULL: list[dict[str, Any]] = [
    PLAIN,
    PLAIN | {"scheme": "free"},
    PLAIN | {"method": "zeroq"},
    PLAIN | {"method": "noise"},
    PLAIN | {"method": "real"},
    PLAIN | {"bits": "w4a8", "tuning": "none"},
    PLAIN | {"bits": "w4a8", "tuning": "none", "scheme": "free"},
    PLAIN | {"bits": "w4a8", "tuning": "none", "method": "real"},
]

SETTINGS = {"resnet20_cifar10jpeg": FULL}


def measure(name: str, case: Case, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Compress once, and evaluate on each test set; one row for each."""
    settings = {"scheme": "power-of-two", "effort": "fast"} | settings
    real = settings["method"] == "real"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compressed.onnx"
        result = onnxdfq.compress(
            DATA / "models" / f"{name}.onnx",
            output=path,
            normalize=case.normalize,
            calibration=DATA / f"{case.reference}.npz" if real else None,
            progress=TerminalProgress,
            **{key: value for key, value in settings.items() if not (real and key == "method")},
        )
        for found in accuracies(path, name, case):
            print(
                f"{name:22} {settings['method']:6} {settings['bits']} {settings['scheme']:13} "
                f"{found['count']:6,} images: drop {found['drop_points']:6.2f}",
                flush=True,
            )
            yield {"model": name, **settings, **result.metrics, **found}


def accuracies(compressed: Path, name: str, case: Case) -> Iterator[dict[str, Any]]:
    """Top-1 of a compressed network on each of its test sets, and what it lost."""
    session, original = Session(compressed), Session(DATA / "models" / f"{name}.onnx")
    for images in case.evaluate:
        data = load_evaluation_data(DATA / f"{images}.npz", session, case.normalize)
        found = asdict(evaluate(session, data, against=original))
        yield {"evaluated_on": images, "drop_points": round(100 * (found["top1_float"] - found["top1"]), 2), **found}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as the docs show them: means over the seeds."""
    lines = ["| model | images | bits | thresholds | float | compressed | drop |", "|---|---|---|---|---|---|---|"]
    runs: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = f"| {row['model']} ({row['count']:,} images) | {row['method']} | {row['bits']} | {row['scheme']} |"
        runs.setdefault(name, []).append(row)
    for name, found in runs.items():
        expected, top1, drop = (fmean(row[key] for row in found) for key in ("top1_float", "top1", "drop_points"))
        mean = f" (mean of {len(found)} seeds)" if len(found) > 1 else ""
        lines.append(f"{name} {100 * expected:.2f} | {100 * top1:.2f} | {drop:.2f}{mean} |")
    return "\n".join(lines)


def main() -> None:
    """All cases."""
    rows = [
        row
        for name, case in CASES.items()
        for settings in SETTINGS.get(name, [PLAIN])
        for seed in range(case.seeds)
        for row in measure(name, case, settings | {"seed": seed})
    ]
    write_results(RESULTS, rows)
    print(table(rows))


if __name__ == "__main__":
    main()

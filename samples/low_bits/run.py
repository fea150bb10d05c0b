"""Accuracy at 4, 3 and 2 bits, data-free, with ablations: `python -m samples.low_bits.run`, from the project's root.

With names of networks (or NETWORK:EFFORT) their rows are measured anew, and the others stay.
Evaluation images are used for evaluation only. Rows whose images are `real` calibrate and tune on training images, as a
reference. The images of a network are made once and shared by its rows: one `onnxdfq compress` with the same settings
makes the same ones.
"""

import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import onnxdfq
from onnxdfq.images.normalization import Normalization
from onnxdfq.methods import Dgh
from onnxdfq.methods.method import IMAGE_COUNT
from onnxdfq.progress import TerminalProgress
from samples.accuracy.run import CASES, DATA, accuracies
from samples.record import read_rows, write_results

RESULTS = Path(__file__).with_name("results.json")
STUDIED = "resnet20_cifar10jpeg"
IMAGES = {STUDIED: 512}  # at least; the others: as the effort has it
TIMED = "resnet20_cifar10"  # at all efforts
BITS = ("w8a8", "w4a8", "w4a4", "w3a3", "w2a4")
ABLATIONS = {
    "dgh without aggregation": {"aggregate": False},
    "dgh without stretching": {"stretching": 0.0},
    "dgh without image prior": {"image_prior": False},
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row. images: dgh, real, or an ablation of dgh. tuning: None is the default of the bits."""

    bits: str
    effort: str = "fast"
    images: str = "dgh"
    scheme: str = "power-of-two"
    tuning: str | None = None
    equalize: bool | None = None


STUDY = (
    *(Setting(bits=bits, scheme=scheme) for scheme in ("power-of-two", "free") for bits in BITS),
    *(Setting(bits=bits, scheme=scheme, effort="standard") for scheme in ("power-of-two", "free") for bits in BITS),
    *(Setting(bits=bits, images="real") for bits in BITS),
    Setting(bits="w4a4", tuning="none"),
    Setting(bits="w4a4", tuning="adaround"),
    Setting(bits="w2a4", tuning="adaround"),
    Setting(bits="w4a4", equalize=True),
    Setting(bits="w2a4", equalize=True),
    *(Setting(bits="w4a4", images=images) for images in ABLATIONS),
)
OTHERS = (
    Setting(bits="w4a8"),
    Setting(bits="w4a4"),
    Setting(bits="w8a8", effort="standard"),
    Setting(bits="w4a8", effort="standard"),
)
PAPER = {TIMED: (Setting(bits="w4a8", effort="paper"),)}


def image_count(name: str, effort: str) -> int:
    return max(IMAGE_COUNT[effort], IMAGES.get(name, 0))


def make_images(name: str, setting: Setting, seed: int, path: Path) -> float:
    """Write the images of this kind for a network; the seconds it took."""
    kind, count = setting.images, image_count(name, setting.effort)
    normalize = CASES[name].normalize
    if kind == "dgh":
        made = onnxdfq.synthesize(
            DATA / "models" / f"{name}.onnx",
            output=path,
            normalize=normalize,
            effort=setting.effort,
            images=count,
            seed=seed,
            progress=TerminalProgress,
        )
        return float(made.metrics["seconds"] or 0)
    model = onnxdfq.load(DATA / "models" / f"{name}.onnx")
    method = replace(Dgh(), **ABLATIONS[kind])  # type: ignore[arg-type]
    made = method.synthesize(
        model,
        count=count,
        seed=seed,
        normalization=Normalization.parse(normalize),
        progress=TerminalProgress(kind),
    )
    made.save(path)
    return 0.0


def measure(
    name: str, setting: Setting, seed: int, images: Path, seconds: float, count: int | None = None
) -> Iterator[dict[str, Any]]:
    """Compress once, and evaluate on each test set; one row for each.

    seconds: what the images took. count: how many of them; None is as the effort has it.
    """
    case = CASES[name]
    tuning = setting.tuning or ("none" if setting.bits.startswith("w8") else "brecq")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compressed.onnx"
        result = onnxdfq.compress(
            DATA / "models" / f"{name}.onnx",
            output=path,
            calibration=images,
            images=count or image_count(name, setting.effort),
            effort=setting.effort,
            normalize=case.normalize,
            progress=TerminalProgress,
            seed=seed,
            bits=setting.bits,
            scheme=setting.scheme,
            equalize=setting.equalize,
            **({} if setting.tuning is None else {"tuning": setting.tuning}),
        )
        for found in accuracies(path, name, case):
            row = {
                "model": name,
                "bits": setting.bits,
                "scheme": setting.scheme,
                "images": setting.images,
                "tuning": tuning + (", equalized" if setting.equalize else ""),
                "effort": setting.effort,
                "seed": seed,
                **found,
                "bytes": result.metrics["bytes"],
                "seconds_images": seconds,
                "seconds": result.metrics["seconds"],
            }
            print(
                f"{name:22} {setting.images:24} {setting.effort:8} {setting.bits} {setting.scheme:13} "
                f"{row['tuning']:16} {row['count']:6,} images: drop {row['drop_points']:6.2f}",
                flush=True,
            )
            yield row


def table(rows: list[dict[str, Any]]) -> str:
    """Drops of the studied network as the docs show them: one line per kind of images, effort and scheme."""
    lines = ["| images | effort | thresholds | " + " | ".join(BITS) + " |", "|---|---|---|" + "---|" * len(BITS)]
    for images, effort, scheme in (
        *product(["dgh"], ["fast", "standard"], ["power-of-two", "free"]),
        ("real", "fast", "power-of-two"),
    ):
        drops = [_drop(rows, STUDIED, bits, images=images, effort=effort, scheme=scheme) for bits in BITS]
        lines.append(f"| {images} | {effort} | {scheme} | " + " | ".join(drops) + " |")
    return "\n".join(lines)


def overview(rows: list[dict[str, Any]]) -> str:
    """What every network loses at the effort `standard`: means over the seeds, those of the most images first."""
    lines = ["| network | test images | float | drop at w8a8 | drop at w4a8 |", "|---|---|---|---|---|"]
    found = _rows(rows, effort="standard", scheme="power-of-two")
    places = dict.fromkeys((row["model"], row["evaluated_on"], row["count"], row["top1_float"]) for row in found)
    for name, evaluated, count, expected in sorted(places, key=lambda place: -place[2]):
        drops = [_drop(found, name, bits, evaluated_on=evaluated) for bits in ("w8a8", "w4a8")]
        lines.append(f"| {name} | {count:,} | {100 * expected:.2f} % | " + " | ".join(drops) + " |")
    return "\n".join(lines)


def efforts(rows: list[dict[str, Any]]) -> str:
    """What the efforts take, and lose, where all three were run."""
    lines = [f"| {TIMED}, w4a8 | images | minutes, one core | drop |", "|---|---|---|---|"]
    for effort in IMAGE_COUNT:
        (row,) = _rows(rows, model=TIMED, bits="w4a8", effort=effort)
        minutes = (row["seconds_images"] + row["seconds"]) / 60
        lines.append(f"| {effort} | {image_count(TIMED, effort)} | {minutes:.0f} | {row['drop_points']:.2f} |")
    return "\n".join(lines)


def _drop(rows: list[dict[str, Any]], name: str, bits: str, **wanted: str) -> str:
    """The mean over the seeds, with the default tuning of the bits."""
    tuning = "none" if bits == "w8a8" else "brecq"
    return f"{fmean(row['drop_points'] for row in _rows(rows, model=name, bits=bits, tuning=tuning, **wanted)):.2f}"


def _rows(rows: list[dict[str, Any]], **wanted: str) -> list[dict[str, Any]]:
    return [row for row in rows if wanted.items() <= row.items()]


def main(wanted: Collection[str]) -> None:
    """All rows, or those of the networks that are named (or of NETWORK:EFFORT) in the place of the ones that are there;
    written after each network, so that a broken run leaves what it has."""
    old = read_rows(RESULTS) if wanted else []
    rows = [row for row in old if row["model"] not in wanted and f"{row['model']}:{row['effort']}" not in wanted]
    with tempfile.TemporaryDirectory() as folder:
        for name in (STUDIED, *(name for name in CASES if name != STUDIED)):
            settings = STUDY if name == STUDIED else (*OTHERS, *PAPER.get(name, ()))
            settings = tuple(one for one in settings if not wanted or {name, f"{name}:{one.effort}"} & {*wanted})
            seconds: dict[Path, float] = {}
            for seed, setting in product(range(CASES[name].seeds), settings):
                path = Path(folder) / f"{name} {setting.images} {setting.effort} {seed}.npz"
                if setting.images == "real":
                    path = DATA / f"{CASES[name].reference}.npz"
                elif path not in seconds:
                    seconds[path] = make_images(name, setting, seed, path)
                rows.extend(measure(name, setting, seed, path, seconds.get(path, 0.0)))
                write_results(RESULTS, rows)
    print(table(rows), overview(rows), efforts(rows), sep="\n\n")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Accuracy at 4, 3 and 2 bits, data-free, with ablations: `python -m samples.low_bits.run`, from the project's root.

Evaluation images are used for evaluation only. Rows whose images are `real` calibrate and tune on training images, as a
reference. The images of a network are made once and shared by its rows: one `onnxdfq compress` with the same settings
makes the same ones.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import onnxdfq
from onnxdfq.dataset import Normalization
from onnxdfq.model_file import load_model
from onnxdfq.progress import TerminalProgress
from onnxdfq.synthesis import Dgh
from passes.canonicalize import Canonicalize
from samples.accuracy.run import CASES, DATA, accuracies
from samples.record import write_results

RESULTS = Path(__file__).with_name("results.json")
STUDIED = "resnet20_cifar10jpeg"
IMAGES = {STUDIED: 512}  # the others: as the effort `fast` has it
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
    images: str = "dgh"
    scheme: str = "power-of-two"
    tuning: str | None = None
    equalize: bool = False


STUDY = (
    *(Setting(bits=bits, scheme=scheme) for scheme in ("power-of-two", "free") for bits in BITS),
    *(Setting(bits=bits, images="real") for bits in BITS),
    Setting(bits="w4a4", tuning="none"),
    Setting(bits="w4a4", tuning="adaround"),
    Setting(bits="w2a4", tuning="adaround"),
    Setting(bits="w4a4", equalize=True),
    Setting(bits="w2a4", equalize=True),
    *(Setting(bits="w4a4", images=images) for images in ABLATIONS),
)
OTHERS = (Setting(bits="w4a8"), Setting(bits="w4a4"))


def make_images(name: str, kind: str, seed: int, path: Path) -> float:
    """Write the images of this kind for a network; the seconds it took."""
    normalize = CASES[name].normalize
    if kind == "dgh":
        made = onnxdfq.synthesize(
            DATA / "models" / f"{name}.onnx",
            output=path,
            normalize=normalize,
            seed=seed,
            progress=TerminalProgress,
            **({"images": IMAGES[name]} if name in IMAGES else {}),
        )
        return float(made.metrics["seconds"] or 0)
    model = load_model(DATA / "models" / f"{name}.onnx")
    Canonicalize()(model)
    method = replace(Dgh(), **ABLATIONS[kind])  # type: ignore[arg-type]
    made = method.synthesize(
        model,
        count=IMAGES[name],
        seed=seed,
        normalization=Normalization.parse(normalize),
        progress=TerminalProgress(kind),
    )
    made.save(path)
    return 0.0


def measure(name: str, setting: Setting, seed: int, images: Path, seconds: float) -> Iterator[dict[str, Any]]:
    """Compress once, and evaluate on each test set; one row for each. seconds: what the images took."""
    case = CASES[name]
    tuning = setting.tuning or ("none" if setting.bits.startswith("w8") else "brecq")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compressed.onnx"
        result = onnxdfq.compress(
            DATA / "models" / f"{name}.onnx",
            output=path,
            calibration=images,
            images=IMAGES.get(name, 256),
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
                "effort": "fast",
                "seed": seed,
                **found,
                "bytes": result.metrics["bytes"],
                "seconds_images": seconds,
                "seconds": result.metrics["seconds"],
            }
            print(
                f"{name:22} {setting.images:24} {setting.bits} {setting.scheme:13} {row['tuning']:16} "
                f"{row['count']:6,} images: drop {row['drop_points']:6.2f}",
                flush=True,
            )
            yield row


def table(rows: list[dict[str, Any]]) -> str:
    """Drops of the studied network as the README shows them: one line per scheme and kind of images."""
    lines = ["| images | thresholds | " + " | ".join(BITS) + " |", "|---|---|" + "---|" * len(BITS)]
    for images, scheme in (("dgh", "power-of-two"), ("dgh", "free"), ("real", "power-of-two")):
        drops = []
        for bits in BITS:
            default = "none" if bits == "w8a8" else "brecq"
            wanted = {"model": STUDIED, "images": images, "scheme": scheme, "bits": bits, "tuning": default}
            (row,) = [row for row in rows if wanted.items() <= row.items()]
            drops.append(f"{row['drop_points']:.2f}")
        lines.append(f"| {images} | {scheme} | " + " | ".join(drops) + " |")
    return "\n".join(lines)


def main() -> None:
    """All rows; written after each network, so that a broken run leaves what it has."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in (STUDIED, *(name for name in CASES if name != STUDIED)):
            settings = STUDY if name == STUDIED else OTHERS
            seconds: dict[Path, float] = {}
            for seed, setting in product(range(CASES[name].seeds), settings):
                path = Path(folder) / f"{name} {setting.images} {seed}.npz"
                if setting.images == "real":
                    path = DATA / f"{CASES[name].reference}.npz"
                elif path not in seconds:
                    seconds[path] = make_images(name, setting.images, seed, path)
                rows.extend(measure(name, setting, seed, path, seconds.get(path, 0.0)))
                write_results(RESULTS, rows)
    print(table(rows))


if __name__ == "__main__":
    main()

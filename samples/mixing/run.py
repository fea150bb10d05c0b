"""Images of several networks for one that is not among them: `python -m samples.mixing.run`, from the project's root.

Numbers of images and steps may follow. Evaluation images are used for evaluation only.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import onnxdfq
from onnxdfq.methods import DeepInversion, Mixmix
from onnxdfq.progress import TerminalProgress
from samples.accuracy.run import CASES, DATA, accuracies
from samples.record import write_results

RESULTS = Path(__file__).with_name("results.json")
ZOO = ("resnet20_cifar10", "resnet56_cifar10", "resnet8_cifar10", "convmixer_cifar10")
IMAGES, STEPS, BATCH = 256, 300, 64
BITS, SEED = "w4a4", 0


@dataclass(frozen=True, kw_only=True)
class Set:
    """A set of images. made_by: names of networks; of several, MixMix mixes three."""

    made_by: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.made_by[0] if len(self.made_by) == 1 else "mixmix of the others"

    def made_for(self, target: str) -> bool:
        """Whether a target is compressed on it: all by the sets of single networks, each by the zoo without it."""
        return len(self.made_by) == 1 or target not in self.made_by


SETS = (
    *(Set(made_by=(name,)) for name in ZOO),
    *(Set(made_by=tuple(name for name in ZOO if name != left_out)) for left_out in ZOO),
)


def path_of(name: str) -> Path:
    return DATA / "models" / f"{name}.onnx"


def member(name: str) -> onnxdfq.Member:
    return onnxdfq.Member(path=path_of(name), normalize=CASES[name].normalize)


def make_images(images: Set, count: int, steps: int, path: Path) -> dict[str, Any]:
    """Write a set as bytes, and tell what each network of the zoo says of it: of labels, and without."""
    kind = DeepInversion if len(images.made_by) == 1 else Mixmix
    made = onnxdfq.synthesize(
        path_of(images.made_by[0]),  # they are all of one size
        output=path,
        method=kind(steps=steps, batch_size=BATCH),
        zoo=[member(name) for name in images.made_by],
        normalize=CASES[images.made_by[0]].normalize,
        images=count,
        effort="paper",  # takes the steps as they are asked for
        seed=SEED,
        progress=TerminalProgress,
    )
    card = onnxdfq.image_card(path, [member(name) for name in ZOO])
    labels = {name: onnxdfq.evaluate(path_of(name), path, normalize=CASES[name].normalize).top1 or 0.0 for name in ZOO}
    return {
        "labels": labels,
        "labels_mean": fmean(labels.values()),
        "labels_std": pstdev(labels.values()),
        "confident_mean": card.confident_mean,
        "confident_std": card.confident_std,
        "bn_distance": {one.name: one.bn_distance for one in card.models},
        "diversity": card.diversity,
        "entropy": card.entropy,
        "seconds_images": made.metrics["seconds"],
    }


def measure(target: str, images: Set, count: int, path: Path) -> Iterator[dict[str, Any]]:
    """Compress a target on a set, and evaluate it on each of its test sets."""
    case = CASES[target]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "compressed.onnx"
        result = onnxdfq.compress(
            path_of(target),
            output=output,
            calibration=path,
            images=count,
            bits=BITS,
            tuning="brecq",
            normalize=case.normalize,
            seed=SEED,
            progress=TerminalProgress,
        )
        for found in accuracies(output, target, case):
            print(
                f"{target:20} {images.name:22} {found['count']:6,} images: drop {found['drop_points']:6.2f}", flush=True
            )
            yield {
                "model": target,
                "images": images.name,
                "made_by": images.made_by,
                "bits": BITS,
                "tuning": "brecq",
                "seed": SEED,
                **found,
                "seconds": result.metrics["seconds"],
            }


def table(rows: list[dict[str, Any]]) -> str:
    """Drops as the README shows them, and how well the zoo knows the images' labels."""
    lines = ["| network | images by | labels that the zoo knows | drop |", "|---|---|---|---|"]
    for row in rows:
        by = "itself" if row["made_by"] == [row["model"]] or row["made_by"] == (row["model"],) else row["images"]
        known = f"{100 * row['labels_mean']:.2f} ± {100 * row['labels_std']:.2f}"
        lines.append(f"| {row['model']} ({row['count']:,} images) | {by} | {known} | {row['drop_points']:.2f} |")
    return "\n".join(lines)


def main(count: int = IMAGES, steps: int = STEPS, results: Path = RESULTS) -> None:
    """All rows; written after each, so that a broken run leaves what it has."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        paths = {images: Path(folder) / f"{number}.npz" for number, images in enumerate(SETS)}
        about = {images: make_images(images, count, steps, path) for images, path in paths.items()}
        for target, images in product(ZOO, SETS):
            if not images.made_for(target):
                continue
            for row in measure(target, images, count, paths[images]):
                rows.append(row | about[images] | {"count_images": count, "steps": steps})
                write_results(results, rows)
    print(table(rows))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))

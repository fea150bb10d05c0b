"""Images of several networks for one that is not among them: `python -m samples.mixing.run`, from the project's root.

Names of groups, and of networks to compress, measure these alone and keep the other rows. Evaluation images are used
for evaluation only.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import onnxdfq
from onnxdfq.methods import DeepInversion, Mixmix
from onnxdfq.progress import TerminalProgress
from samples.accuracy.run import CASES, DATA, accuracies
from samples.record import read_rows, write_results

RESULTS = Path(__file__).with_name("results.json")
ZOO = ("resnet20_cifar10", "resnet56_cifar10", "resnet8_cifar10", "convmixer_cifar10")
ABLATED = "resnet20_cifar10"
IMAGES, STEPS, BATCH = 128, 100, 64
BITS, SEED = "w4a4", 0


@dataclass(frozen=True, kw_only=True)
class Set:
    """A set of images. made_by: names of networks. models: that look at each batch; of one network DeepInversion makes
    them. mix: whether images are mixed with one another."""

    made_by: tuple[str, ...]
    models: int = 3
    mix: bool = True

    @property
    def name(self) -> str:
        if len(self.made_by) == 1:
            return self.made_by[0]
        return f"mixmix of the others, {self.models} at once{'' if self.mix else ', not mixed'}"

    @property
    def method(self) -> DeepInversion:
        if len(self.made_by) == 1:
            return DeepInversion(steps=STEPS, batch_size=BATCH)
        return Mixmix(steps=STEPS, batch_size=BATCH, models=self.models, mix=self.mix)

    def made_for(self, target: str) -> bool:
        """Whether a target is compressed on it: all by the sets of single networks, each by the zoo without it."""
        return len(self.made_by) == 1 or target not in self.made_by


def _others(left_out: str) -> tuple[str, ...]:
    return tuple(name for name in ZOO if name != left_out)


GROUPS = {
    "single": tuple(Set(made_by=(name,)) for name in ZOO),
    "mixmix": tuple(Set(made_by=_others(name)) for name in ZOO),
    "ablation": tuple(
        Set(made_by=_others(ABLATED), models=models, mix=mix) for models in (1, 2, 3) for mix in (True, False)
    ),
}


def path_of(name: str) -> Path:
    return DATA / "models" / f"{name}.onnx"


def member(name: str) -> onnxdfq.Member:
    return onnxdfq.Member(path=path_of(name), normalize=CASES[name].normalize)


def make_images(images: Set, path: Path) -> dict[str, Any]:
    """Write a set as bytes, and tell what each network of the zoo says of it: of labels, and without."""
    made = onnxdfq.synthesize(
        path_of(images.made_by[0]),  # they are all of one size
        output=path,
        method=images.method,
        zoo=[member(name) for name in images.made_by],
        normalize=CASES[images.made_by[0]].normalize,
        images=IMAGES,
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


def measure(target: str, images: Set, path: Path) -> Iterator[dict[str, Any]]:
    """Compress a target on a set, and evaluate it on each of its test sets."""
    case = CASES[target]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "compressed.onnx"
        result = onnxdfq.compress(
            path_of(target),
            output=output,
            calibration=path,
            images=IMAGES,
            bits=BITS,
            tuning="brecq",
            normalize=case.normalize,
            seed=SEED,
            progress=TerminalProgress,
        )
        for found in accuracies(output, target, case):
            print(
                f"{target:20} {images.name:44} {found['count']:6,} images: drop {found['drop_points']:6.2f}", flush=True
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
    """Drops as the docs show them, and how well the zoo knows the images' labels."""
    lines = ["| network | images by | labels that the zoo knows | drop |", "|---|---|---|---|"]
    for row in rows:
        by = "itself" if row["made_by"] == [row["model"]] else row["images"]
        known = f"{100 * row['labels_mean']:.2f} ± {100 * row['labels_std']:.2f}"
        lines.append(f"| {row['model']} ({row['count']:,} images) | {by} | {known} | {row['drop_points']:.2f} |")
    return "\n".join(lines)


def main(names: list[str]) -> None:
    """The rows that are asked for, or all; written after each, so that a broken run leaves what it has."""
    known = read_rows(RESULTS)
    rows = {(row["model"], row["images"], row["evaluated_on"]): row for row in known}
    targets = [name for name in ZOO if name in names] or list(ZOO)
    asked = [one for group in GROUPS if group in names or not set(names) & set(GROUPS) for one in GROUPS[group]]
    with tempfile.TemporaryDirectory() as folder:
        for number, images in enumerate(dict.fromkeys(asked)):
            wanted = [target for target in targets if images.made_for(target)]
            if not wanted:
                continue
            path = Path(folder) / f"{number}.npz"
            about = make_images(images, path)
            for target in wanted:
                for row in measure(target, images, path):
                    rows[target, images.name, row["evaluated_on"]] = row | about
                    write_results(RESULTS, list(rows.values()), images=IMAGES, steps=STEPS)
    print(table(read_rows(RESULTS)))


if __name__ == "__main__":
    main(sys.argv[1:])

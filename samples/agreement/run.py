"""How far runtimes lie apart on one file, in steps of its output: `python -m samples.agreement.run`, from the project's
root.

Each network is compressed for a target, w8a8 on dead leaves, and run on images that calibrated nothing.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import onnxdfq
from samples.record import write_results

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
RESULTS = Path(__file__).with_name("results.json")
BYTES = "0/0.00392156862745098"
MODELS = (
    ("resnet20_cifar10jpeg", "cifar10_test932", "imagenet"),
    ("resnet8_cifar10", "cifar10_test932", BYTES),
    ("mobilenetv1_vww", "vww_coco256", "none"),
    ("convmixer_cifar10", "cifar10_test932", "cifar10"),
    ("vit_cifar10", "cifar10_test932", "cifar10"),
)
TARGETS = ("ort", "openvino")
RUNTIMES = ("ort", "openvino", "engine")
IMAGES = 128
SEED = 0


def rows_of(name: str, data: str, normalize: str) -> list[dict[str, Any]]:
    source = SHARED / "models" / f"{name}.onnx"
    images = first_images(SHARED / f"{data}.npz")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        started = time.monotonic()
        found = onnxdfq.compress(
            source, output=Path(scratch) / "q.onnx", method="dead-leaves", images=64, steps=1, tuning="none",
            normalize=normalize, target=TARGETS, seed=SEED,
        )  # fmt: skip
        for target, file in found.targets.items():
            assert file.path is not None
            rows += [
                {
                    "model": name,
                    "target": target,
                    "runtime": row.runtime,
                    "steps": round(row.steps, 2),
                    "share": round(row.share, 5),
                    "answers": row.answers,
                    "seed": SEED,
                }
                for row in onnxdfq.compare_runtimes(file.path, images, runtime=RUNTIMES)
            ]
        seconds = round(time.monotonic() - started, 1)
    return [row | {"seconds": seconds} for row in rows]


def first_images(path: Path) -> NDArray[np.uint8]:
    """The first images of a file, as bytes."""
    with np.load(path) as arrays:
        found: NDArray[np.uint8] = arrays["images"][:IMAGES]
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """One line a file: the greatest difference of each runtime, in steps, and the numbers half a step apart."""
    lines = ["| model | file for | " + " | ".join(RUNTIMES) + " |", "|---|---|" + "---|" * len(RUNTIMES)]
    files = dict.fromkeys((row["model"], row["target"]) for row in rows)
    for model, target in files:
        found = {row["runtime"]: row for row in rows if (row["model"], row["target"]) == (model, target)}
        cells = (f"{found[name]['steps']:g} ({100 * found[name]['share']:.2f} %)" for name in RUNTIMES)
        lines.append(f"| {model} | {target} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    rows = []
    for name, data, normalize in MODELS:
        rows += rows_of(name, data, normalize)
        print(table(rows), flush=True)
        write_results(RESULTS, rows, images=IMAGES)


if __name__ == "__main__":
    main()

"""What a student learns without data: `python -m samples.distilling.run [ROWS ...]`, from the project's root.

Half of a ResNet-20 learns from the whole one, by the same steps on real images, on synthesised ones and on those of a
generator; and a pruned one learns to be what it was. Test images are used for evaluation only.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import onnxdfq
from onnxdfq.methods import Dafl
from onnxdfq.progress import TerminalProgress
from samples.accuracy.run import CASES, DATA
from samples.distilling.student import write_student
from samples.made import dgh_images
from samples.record import read_rows, write_results

RESULTS = Path(__file__).with_name("results.json")
NAME = "resnet20_cifar10jpeg"
TEACHER = DATA / "models" / f"{NAME}.onnx"
TRAINING, TEST = DATA / "cifar10jpeg_train10k.npz", DATA / "cifar10jpeg_test.npz"
NORMALIZE, SEED, WIDTH = CASES[NAME].normalize, 0, 8
IMAGES, SYNTHESIS = 2048, 60  # and steps of each
STEPS = {"student": 1500, "channels": 8000, "sparsity": 400}
ROWS = ("real", "dgh", "dafl", "channels", "sparsity")
PRUNED: dict[str, dict[str, Any]] = {"channels": {"channels": 0.2}, "sparsity": {"sparsity": 0.5}}


def synthesised(folder: Path) -> dict[str, Any]:
    """Images that the teacher makes, once for all rows that take them."""
    path = folder / "images.npz"
    dgh_images(TEACHER, path, normalize=NORMALIZE, images=IMAGES, steps=SYNTHESIS, seed=SEED)
    return {"calibration": path}


def distilled(row: str, folder: Path, share: float) -> onnxdfq.Result:
    """A fresh student of half the width; on each kind of images by as many steps of the same optimizer."""
    student, steps = folder / "student.onnx", max(1, round(share * STEPS["student"]))
    write_student(student, width=WIDTH, seed=SEED)
    images: dict[str, Any] = {"calibration": TRAINING} if row == "real" else {}
    if row == "dgh":
        images = synthesised(folder)
    if row == "dafl":
        images = {"method": Dafl(warm_up=max(1, round(share * 300))), "images": 64}
    return onnxdfq.distill(
        TEACHER,
        student,
        output=folder / f"{row}.onnx",
        train_steps=steps,
        optimizer="adam",
        seed=SEED,
        normalize=NORMALIZE,
        progress=TerminalProgress,
        **images,
    )


def repaired(row: str, folder: Path, share: float) -> onnxdfq.Result:
    """A pruned network behind least squares and distillation on the same images."""
    return onnxdfq.prune(
        TEACHER,
        output=folder / f"{row}.onnx",
        repair="least-squares,distillation",
        train_steps=max(1, round(share * STEPS[row])),
        seed=SEED,
        normalize=NORMALIZE,
        progress=TerminalProgress,
        images=IMAGES,
        **PRUNED[row],
        **synthesised(folder),
    )


def measured(row: str, folder: Path, share: float) -> dict[str, Any]:
    """One row."""
    started = time.monotonic()
    result = (repaired if row in PRUNED else distilled)(row, folder, share)
    seconds = round(time.monotonic() - started, 1)
    assert result.path is not None
    found = onnxdfq.evaluate(result.path, TEST, against=TEACHER, normalize=NORMALIZE, progress=TerminalProgress)
    assert found.top1 is not None and found.top1_float is not None
    head = {"row": row, "model": NAME, "seed": SEED, "evaluated_on": TEST.stem, "count": found.count}
    accuracy = {"top1_float": found.top1_float, "top1": found.top1, "agreement": found.agreement}
    kept = ("images", "loss_curve", "weights", "macs", "bytes")
    values = {key: value for key, value in result.metrics.items() if key in kept}
    return {**head, **accuracy, "seconds": seconds, **values, "notes": list(result.notes)}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as the docs show them."""
    real = next((row["top1"] for row in rows if row["row"] == "real"), None)
    lines = ["| row | teacher | student | behind the teacher | behind real images |", "|---|---|---|---|---|"]
    for row in rows:
        behind = 100 * (row["top1_float"] - row["top1"])
        fresh = row["row"] not in PRUNED and real is not None
        other = f"{100 * (real - row['top1']):.2f}" if fresh else "–"
        lines.append(
            f"| {row['row']} | {100 * row['top1_float']:.2f} | {100 * row['top1']:.2f} | {behind:.2f} | {other} |"
        )
    return "\n".join(lines)


def main() -> None:
    """All rows, or those that are named, which leaves the others as they are; written after each, so that a broken run
    leaves what it has."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="*", default=[], help=" ".join(ROWS))
    parser.add_argument("--share", type=float, default=1.0, help="of all steps, to see whether it works")
    given = parser.parse_args()
    known = read_rows(RESULTS)
    rows = {row["row"]: row for row in known}
    with tempfile.TemporaryDirectory() as folder:
        for row in given.rows or ROWS:
            rows[row] = measured(row, Path(folder), given.share)
            if given.share == 1:
                write_results(RESULTS, list(rows.values()), images=IMAGES, synthesis=SYNTHESIS, steps=STEPS)
    print(table(list(rows.values())))


if __name__ == "__main__":
    main()

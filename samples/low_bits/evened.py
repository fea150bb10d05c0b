"""What evening out channels is worth to a depthwise network at w4a8: `python -m samples.low_bits.evened [FOLDER]`.

From the project's root. MobileNet by default and with `--no-equalize`, three seeds, on the same images of each seed,
which FOLDER keeps. Evaluation images are used for evaluation only.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import onnxdfq
from onnxdfq.progress import TerminalProgress
from samples.accuracy.run import CASES, DATA
from samples.made import dgh_images
from samples.record import write_results

RESULTS = Path(__file__).with_name("evened.json")
NAME, IMAGES, STEPS = "mobilenetv1_vww", 128, 60
MODEL, NORMALIZE = DATA / "models" / f"{NAME}.onnx", CASES[NAME].normalize
(EVALUATED,) = CASES[NAME].evaluate


def measure(seed: int, images: Path, equalize: bool | None) -> dict[str, Any]:
    """Compress once, and evaluate; one row."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compressed.onnx"
        result = onnxdfq.compress(
            MODEL,
            output=path,
            calibration=images,
            bits="w4a8",
            normalize=NORMALIZE,
            equalize=equalize,
            seed=seed,
            progress=TerminalProgress,
        )
        found = onnxdfq.evaluate(path, DATA / f"{EVALUATED}.npz", against=MODEL, normalize=NORMALIZE)
    assert found.top1 is not None and found.top1_float is not None
    return {
        "model": NAME,
        "bits": "w4a8",
        "tuning": "brecq",
        "evened": "by default" if equalize is None else "--no-equalize",
        "seed": seed,
        "evaluated_on": EVALUATED,
        "count": found.count,
        "top1_float": found.top1_float,
        "top1": found.top1,
        "agreement": found.agreement,
        "sqnr_db": found.sqnr_db,
        "drop_points": round(100 * (found.top1_float - found.top1), 2),
        "layers_equalized": result.metrics.get("layers_equalized", 0),
        "bytes": result.metrics["bytes"],
        "seconds": result.metrics["seconds"],
    }


def main(folder: Path) -> None:
    """All rows; written after each, so that a broken run leaves what it has."""
    rows: list[dict[str, Any]] = []
    for seed in range(CASES[NAME].seeds):
        path = folder / f"{NAME}.{seed}.npz"
        images = dgh_images(MODEL, path, normalize=NORMALIZE, images=IMAGES, steps=STEPS, seed=seed)
        for equalize in (None, False):
            rows.append(measure(seed, images, equalize))
            print(f"seed {seed} {rows[-1]['evened']:14} drop {rows[-1]['drop_points']:5.2f}", flush=True)
            write_results(RESULTS, rows, images=IMAGES, steps=STEPS)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else made))

"""What many images and a long distillation give below 8 bits: `python -m samples.low_bits.long images.npz w4a4 w3a3`.

From the project's root. The images are made once, 2,048 of 60 steps each, if the file is not there. A scheme may follow
the bits, as in `w4a4:paper`. Rows that are not named stay as they are.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import onnxdfq
from onnxdfq.progress import TerminalProgress
from samples.accuracy.run import CASES, DATA, accuracies
from samples.low_bits.run import STUDIED
from samples.record import read_rows, write_results

RESULTS = Path(__file__).with_name("long.json")
COUNT, STEPS, SEED = 2048, 60, 0


def main() -> None:
    """All rows; written after each, so that a broken run leaves what it has."""
    images, *widths = sys.argv[1:]
    network, case = DATA / "models" / f"{STUDIED}.onnx", CASES[STUDIED]
    common: dict[str, Any] = {"normalize": case.normalize, "seed": SEED, "progress": TerminalProgress}
    made = None
    if not Path(images).exists():
        made = onnxdfq.synthesize(network, output=images, images=COUNT, steps=STEPS, **common).metrics["seconds"]
    known = read_rows(RESULTS)
    rows = {(row["bits"], row["scheme"]): row for row in known}
    with tempfile.TemporaryDirectory() as folder:
        for bits, scheme in (f"{width}:power-of-two".split(":")[:2] for width in widths):
            setting: dict[str, Any] = {"bits": bits, "scheme": scheme, "tuning": "distil", "effort": "standard"}
            output = Path(folder) / f"{bits}.{scheme}.onnx"
            result = onnxdfq.compress(network, output=output, calibration=images, images=COUNT, **setting, **common)
            for found in accuracies(output, STUDIED, case):
                print(setting, "drop", found["drop_points"], flush=True)
                row = {"model": STUDIED, **setting, "seed": SEED, **found}
                rows[bits, scheme] = row | {"seconds_images": made, "seconds": result.metrics["seconds"]}
                write_results(RESULTS, list(rows.values()), images=COUNT, steps_of_images=STEPS)


if __name__ == "__main__":
    main()

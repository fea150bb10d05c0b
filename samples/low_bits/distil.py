"""What distillation adds to BRECQ, on the same images: `python -m samples.low_bits.distil [NETWORK ...]`.

From the project's root. With names of networks their rows are measured anew, and the others stay.
"""

import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

from samples.accuracy.run import CASES, DATA
from samples.low_bits.run import STUDIED, Setting, measure
from samples.made import dgh_images
from samples.record import read_rows, write_results

RESULTS = Path(__file__).with_name("distil.json")
NETWORKS = (STUDIED, "resnet8_cifar10")
BITS = ("w3a3", "w4a4", "w2a4")
# BRECQ of `standard` takes three times the steps, which is about as long as distillation behind that of `fast`
TUNINGS = (("brecq", "fast"), ("distil", "fast"), ("brecq", "standard"))
IMAGES, STEPS, SEED = 512, 60, 0


def main(wanted: list[str]) -> None:
    """All rows, or those of the networks that are named; written after each."""
    rows = [row for row in read_rows(RESULTS) if row["model"] not in (wanted or NETWORKS)]
    for network in wanted or NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            images, started = Path(folder) / "images.npz", time.monotonic()
            network_file = DATA / "models" / f"{network}.onnx"
            normalize = CASES[network].normalize
            dgh_images(network_file, images, normalize=normalize, images=IMAGES, steps=STEPS, seed=SEED)
            seconds = round(time.monotonic() - started, 1)
            for bits, (tuning, effort) in product(BITS, TUNINGS):
                setting = Setting(bits=bits, tuning=tuning, effort=effort)
                rows.extend(measure(network, setting, SEED, images, seconds, IMAGES))
                write_results(RESULTS, rows, images=IMAGES, steps_of_images=STEPS)
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Drops as the docs show them."""
    lines = ["| network | tuning | effort | " + " | ".join(BITS) + " |", "|---|---|---|" + "---|" * len(BITS)]
    for network, (tuning, effort) in product(dict.fromkeys(row["model"] for row in rows), TUNINGS):
        own = {"model": network, "tuning": tuning, "effort": effort}
        drops = {row["bits"]: f"{row['drop_points']:.2f}" for row in rows if own.items() <= row.items()}
        lines.append(f"| {network} | {tuning} | {effort} | " + " | ".join(drops.get(bits, "–") for bits in BITS) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(sys.argv[1:])

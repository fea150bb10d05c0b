"""What distillation adds to BRECQ, on the same images: `python -m samples.low_bits.distil`, from the project's root."""

import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from samples.low_bits.run import STUDIED, Setting, make_images, measure
from samples.record import write_results

RESULTS = Path(__file__).with_name("distil.json")
BITS = ("w3a3", "w4a4", "w2a4")
TUNINGS = ("brecq", "distil")
SEED = 0


def main() -> None:
    """All rows; written after each, so that a broken run leaves what it has."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images.npz"
        settings = [Setting(bits=bits, tuning=tuning) for bits, tuning in product(BITS, TUNINGS)]
        seconds = make_images(STUDIED, settings[0], SEED, images)
        for setting in settings:
            rows.extend(measure(STUDIED, setting, SEED, images, seconds))
            write_results(RESULTS, rows)
    print(table(rows))


def table(rows: list[dict[str, Any]]) -> str:
    """Drops as the docs show them."""
    lines = ["| tuning | " + " | ".join(BITS) + " |", "|---|" + "---|" * len(BITS)]
    for tuning in TUNINGS:
        drops = {row["bits"]: f"{row['drop_points']:.2f}" for row in rows if row["tuning"] == tuning}
        lines.append(f"| {tuning} | " + " | ".join(drops.get(bits, "–") for bits in BITS) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

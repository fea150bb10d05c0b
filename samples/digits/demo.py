"""`make demo`: compress the shipped digits network without data, evaluate it, and say where the result lies."""

from pathlib import Path

import onnxdfq
from onnxdfq.progress import TerminalProgress

FOLDER = Path(__file__).parent


def main() -> None:
    """Compress at two widths and print one table."""
    rows = []
    for bits in ("w8a8", "w4a8"):
        result = onnxdfq.compress(
            FOLDER / "digits.onnx",
            method="dgh",
            bits=bits,
            evaluate=FOLDER / "digits_test.npz",
            force=True,
            progress=TerminalProgress,
        )
        if not rows:
            rows.append(("float", result.metrics["top1_float"], result.metrics["bytes_float"], FOLDER / "digits.onnx"))
        rows.append((bits, result.metrics["top1"], result.metrics["bytes"], result.path))
    print(f"{'model':8} {'accuracy':>9} {'bytes':>9}  file")
    for name, accuracy, size, path in rows:
        print(f"{name:8} {accuracy:>9.2%} {size:>9,}  {path}")


if __name__ == "__main__":
    main()

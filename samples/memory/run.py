"""Peak memory of commands on a model of 2.5 GB: `python -m samples.memory.run [BYTES]`, which takes an hour or more."""

import sys
import tempfile
from pathlib import Path
from typing import Any

from samples.memory.measuring import measured
from samples.memory.model import write_model
from samples.record import write_results

RESULTS = Path(__file__).with_name("results.json")
BYTES, SEED = 2_500_000_000, 0
MOST = 1.5  # times the model
SAMPLE = ("--quiet", "--force", "--json")
GPTQ = ("--bits", "w4a32", "--block", "32", "--rounding", "gptq", "--method", "noise", "--images", "16")
COMMANDS = {
    "inspect": ("inspect", "{model}", "--json"),
    "lint": ("lint", "{model}", "--json"),
    "w8a32": ("compress", "{model}", "--bits", "w8a32", "--block", "32", "-o", "{output}", *SAMPLE),
    "lint of w8a32": ("lint", "{output}", "--json"),
    "w4a32": ("compress", "{model}", "--bits", "w4a32", "--block", "32", "-o", "{output}", *SAMPLE),
    "lint of w4a32": ("lint", "{output}", "--json"),
    "gptq": ("compress", "{model}", *GPTQ, "-o", "{output}", *SAMPLE),
    "lint of gptq": ("lint", "{output}", "--json"),
    "dfmpc": ("compress", "{model}", "--method", "dfmpc", "--bits", "w2/6", "-o", "{output}", *SAMPLE),
    "lint of dfmpc": ("lint", "{output}", "--json"),
}


def row(name: str, folder: Path, size: int) -> dict[str, Any]:
    """One command on the model in this folder."""
    places = {"model": folder / "model.onnx", "output": folder / "out.onnx"}
    command = [part.format(**places) for part in COMMANDS[name]]
    used = measured([sys.executable, "-m", "onnxdfq", *command])
    if used.code:
        raise RuntimeError(f"{name} ended with {used.code}: {used.said}")
    found = {
        "command": name,
        "bytes": size,
        "resident": used.resident,
        "anonymous": used.anonymous,
        "share": round(used.resident / size, 3),
        "within": used.resident < MOST * size,
        "seconds": used.seconds,
        "seed": SEED,
    }
    print(found, flush=True)
    return found


def main(size: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        whole = write_model(folder / "model.onnx", size, seed=SEED)
        rows = [row(name, folder, whole) for name in COMMANDS]
    write_results(RESULTS, rows, most=MOST)


if __name__ == "__main__":
    main(int(float(sys.argv[1])) if len(sys.argv) > 1 else BYTES)

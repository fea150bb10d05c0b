"""Peak memory on a model of 2.5 GB, and of 100,000 images: `python -m samples.memory.run [BYTES] [ROW ...]`.

All of it takes up to an hour. With names of rows they are measured anew, and the others stay.
"""

import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from samples.memory.measuring import measured
from samples.memory.model import write_model
from samples.record import read_rows, write_results

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
SMALL = 1_000_000  # bytes of the model that images are made for: what they take is to be seen
AT_ONCE, MORE = 4_000, 1.1  # images of a file; times the memory of few files
IMAGES = ("--method", "dgh", "--steps", "2", "--images", f"{AT_ONCE}", "--normalize", "imagenet")
FILES = {f"{AT_ONCE * files:,} images": files for files in (5, 25)}


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


def streamed(name: str, folder: Path, least: int | None) -> dict[str, Any]:
    """Images in files, of which many are to take no more memory than few. least: bytes that these took."""
    model, images = folder / "small.onnx", folder / f"{FILES[name]}.files"
    if not model.exists():
        write_model(model, SMALL, seed=SEED)
    command = ["synthesize", str(model), *IMAGES, "--files", str(FILES[name]), "-o", str(images), *SAMPLE]
    used = measured([sys.executable, "-m", "onnxdfq", *command])
    if used.code:
        raise RuntimeError(f"{name} ended with {used.code}: {used.said}")
    found = {
        "command": name,
        "bytes": sum(file.stat().st_size for file in images.iterdir()),
        "resident": used.resident,
        "anonymous": used.anonymous,
        "within": least is None or used.resident < MORE * least,
        "seconds": used.seconds,
        "seed": SEED,
    }
    print(found, flush=True)
    return found


def main(size: int, names: Collection[str]) -> None:
    """All rows, or those that are named in the place of the ones that are there; written after each, so that a broken
    run leaves what it has."""
    rows = {row["command"]: row for row in read_rows(RESULTS)}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if wanted := [name for name in COMMANDS if not names or name in names]:
            whole = write_model(folder / "model.onnx", size, seed=SEED)
            for name in wanted:
                rows[name] = row(name, folder, whole)
                write_results(RESULTS, list(rows.values()), most=MOST)
        least = None
        for name in FILES if not names or "images" in names else ():
            rows[name] = streamed(name, folder, least)
            least = least or rows[name]["resident"]
            write_results(RESULTS, list(rows.values()), most=MOST)


if __name__ == "__main__":
    given = [int(float(each)) for each in sys.argv[1:] if each[0].isdigit()]
    main(given[0] if given else BYTES, [each for each in sys.argv[1:] if not each[0].isdigit()])

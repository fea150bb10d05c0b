"""What workers are worth: `python -m samples.many_machines.run [ROW ...]`, on two cores that have nothing else to do.

Each command runs as one worker of one thread, as one of two threads, and as two workers of one. The three take turns,
and the middle one of their times counts. Where the threads are as many, the bytes must be the same.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path
from statistics import median
from typing import Any

from samples.accuracy.run import CASES, DATA
from samples.record import read_rows, write_results

RESULTS = Path(__file__).with_name("results.json")
MODEL, SEED, TAKES = "resnet20_cifar10", 0, 3
STARTS = {"seconds": (1, 1), "seconds_two_threads": (1, 2), "seconds_two_workers": (2, 1)}  # workers, threads of each
IMAGES = ("synthesize", "--images", "128", "--steps", "40")
COMMANDS = {
    "images of zeroq": (*IMAGES, "--method", "zeroq", "--batch-size", "64"),
    "images of dgh": (*IMAGES, "--method", "dgh", "--batch-size", "128", "--set", "dgh.slices=2"),
    "brecq": ("compress", "--method", "noise", "--images", "64", "--bits", "w4a8", "--train-slices", "2"),
}


def started(name: str, workers: int, threads: int, folder: Path) -> tuple[float, str]:
    """Seconds of one run of torchrun, and the hash of what it wrote."""
    output = folder / ("images.npz" if COMMANDS[name][0] == "synthesize" else "small.onnx")
    command, *options = COMMANDS[name]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(workers)]
    said = [command, str(DATA / "models" / f"{MODEL}.onnx"), *options, "--normalize", CASES[MODEL].normalize]
    began = time.monotonic()
    subprocess.run(
        [*torchrun, "-m", "onnxdfq", *said, "--seed", str(SEED), "--quiet", "--force", "-o", str(output)],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        check=True,
    )
    return time.monotonic() - began, hashlib.sha256(output.read_bytes()).hexdigest()


def row(name: str, folder: Path) -> dict[str, Any]:
    """One command as all three.

    Raises:
        RuntimeError: two workers wrote other bytes than one.
    """
    seconds: dict[str, list[float]] = {start: [] for start in STARTS}
    written = {}
    for _ in range(TAKES):
        for start, (workers, threads) in STARTS.items():
            took, written[start] = started(name, workers, threads, folder)
            seconds[start].append(took)
    if written["seconds_two_workers"] != written["seconds"]:
        raise RuntimeError(f"{name}: two workers wrote other bytes than one.")
    middle = {start: round(median(took), 1) for start, took in seconds.items()}
    found = {
        "model": MODEL,
        "what": name,
        **middle,
        "speedup_threads": round(middle["seconds"] / middle["seconds_two_threads"], 2),
        "speedup_workers": round(middle["seconds"] / middle["seconds_two_workers"], 2),
        "takes": {start: [round(each, 1) for each in took] for start, took in seconds.items()},
        "command": " ".join(COMMANDS[name]),
        "seed": SEED,
    }
    print(found, flush=True)
    return found


def main(names: Collection[str]) -> None:
    """All rows, or those that are named in the place of the ones that are there; written after each."""
    rows = {row["what"]: row for row in read_rows(RESULTS)} if names else {}
    with tempfile.TemporaryDirectory() as folder:
        for name in COMMANDS:
            if not names or name in names:
                rows[name] = row(name, Path(folder))
                write_results(RESULTS, list(rows.values()))


if __name__ == "__main__":
    main(sys.argv[1:])

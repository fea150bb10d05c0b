"""Kills at random moments, and what they leave: `python -m samples.hostile.kills [COUNT]`.

Each run compresses a small network in folders of its own, and is killed at a moment drawn uniformly over the length of
one that nothing disturbs. Every second run finds an older file at the output's place. Where something is left over,
another run, whole, sweeps.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from samples.record import write_results

RESULTS = Path(__file__).with_name("kills.json")
COUNT, SEED = 100, 0
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
RUNS = {
    "w8a8": ("--bits", "w8a8", "--method", "dgh", "--images", "16", "--steps", "20"),
    "w4a8": ("--bits", "w4a8", "--method", "dgh", "--images", "32", "--steps", "20"),
}
SWEEP = ("--method", "noise", "--images", "8")
OLD = b"what was there before"


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """A run to its end. seconds: that it takes. written: its file, which every run of the same seed makes again."""

    seconds: float
    written: bytes


def tiny_network(path: Path) -> Path:
    """Two convolutions with BatchNormalization and a classifier, 8×8 pixels; random weights."""
    generator = np.random.default_rng(SEED)

    def normal(*shape: int) -> NDArray[np.float32]:
        return generator.normal(size=shape).astype(np.float32)

    weights = {"w1": normal(8, 3, 3, 3), "w2": normal(8, 8, 3, 3), "w3": normal(5, 8)}
    for layer in ("1", "2"):
        statistics = {"scale": 1 + normal(8) ** 2, "shift": normal(8), "mean": normal(8), "var": 1 + normal(8) ** 2}
        weights |= {f"{name}{layer}": values for name, values in statistics.items()}
    nodes = []
    for layer, source in (("1", "x"), ("2", "r1")):
        kernel = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
        nodes.append(helper.make_node("Conv", [source, f"w{layer}"], [f"c{layer}"], **kernel))
        read = [f"{name}{layer}" for name in ("c", "scale", "shift", "mean", "var")]
        nodes.append(helper.make_node("BatchNormalization", read, [f"n{layer}"]))
        nodes.append(helper.make_node("Relu", [f"n{layer}"], [f"r{layer}"]))
    nodes.append(helper.make_node("GlobalAveragePool", ["r2"], ["p"]))
    nodes.append(helper.make_node("Flatten", ["p"], ["f"]))
    nodes.append(helper.make_node("Gemm", ["f", "w3"], ["y"], transB=1))
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3, 8, 8])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 5])
    tensors = [numpy_helper.from_array(values.astype(np.float32), name) for name, values in weights.items()]
    graph = helper.make_graph(nodes, "tiny", [x], [y], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), path)
    return path


def started(folder: Path, output: str, arguments: tuple[str, ...]) -> "subprocess.Popen[str]":
    """onnxdfq in this folder, with a temporary folder of its own."""

    def hear() -> None:  # a job in the background is started deaf to Ctrl-C, and its children inherit that
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    return subprocess.Popen(
        [sys.executable, "-m", "onnxdfq", "compress", "tiny.onnx", *arguments, "--force", "-q", "-o", output],
        cwd=folder / "files",
        env={**os.environ, "TMPDIR": str(folder / "temporary"), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear,
    )


def prepared(folder: Path, model: Path) -> Path:
    """The folders of one run."""
    for name in ("files", "temporary"):
        (folder / name).mkdir(parents=True)
    shutil.copy(model, folder / "files" / "tiny.onnx")
    return folder


def undisturbed(folder: Path, model: Path, bits: str) -> Undisturbed:
    """How a run ends that nobody kills, and its length: that of the second one, which finds all files in memory."""
    for _ in range(2):
        shutil.rmtree(folder, ignore_errors=True)
        began = time.monotonic()
        process = started(prepared(folder, model), "out.onnx", RUNS[bits])
        _, said = process.communicate()
        if process.returncode:
            raise RuntimeError(f"The undisturbed run ended with {process.returncode}: {said}")
        if strangers(folder):
            raise RuntimeError(f"The undisturbed run left {strangers(folder)}.")
    return Undisturbed(seconds=time.monotonic() - began, written=(folder / "files" / "out.onnx").read_bytes())


def killed(
    folder: Path, model: Path, bits: str, number: signal.Signals, moment: float, whole: Undisturbed
) -> Counter[str]:
    """What one kill came to, one count a fact.

    Args:
        folder: For the run; made here.
        model: To compress.
        bits: Of the run.
        number: Of the signal.
        moment: Seconds after the start.
        whole: The same run, undisturbed.
    """
    output = prepared(folder, model) / "files" / "out.onnx"
    older = bool(int(moment * 1e6) % 2)
    if older:
        output.write_bytes(OLD)
    process = started(folder, output.name, RUNS[bits])
    time.sleep(moment)
    process.send_signal(number)
    _, said = process.communicate(timeout=600)
    found = output.read_bytes() if output.exists() else None
    before = OLD if older else None
    state = "whole" if found == whole.written else "as_before" if found == before else "corrupt"
    counts = Counter({"kills": 1, state: 1, "left_by_the_kill": len(strangers(folder))})
    ends = {0, -number} if number == signal.SIGKILL else {0, -number, 128 + number}
    counts["ended_otherwise"] = int(process.returncode not in ends)
    counts["exit_code_of_the_signal"] = int(process.returncode == 128 + number)
    counts["untrue"] = int(("nothing was written" in said) != (process.returncode > 0 and state != "whole"))
    counts["tracebacks"] = int("Traceback" in said and "onnxdfq" in said)
    if counts["left_by_the_kill"]:
        sweeping = started(folder, "other.onnx", SWEEP)
        _, said = sweeping.communicate(timeout=600)
        if sweeping.returncode:
            raise RuntimeError(f"The sweeping run ended with {sweeping.returncode}: {said}")
    counts["left_after_the_next_run"] = len(strangers(folder))
    return counts


def strangers(folder: Path) -> list[str]:
    """Names in both folders that are neither the model, nor an output, nor the one folder that torch keeps for good."""
    names = [entry.name for part in ("files", "temporary") for entry in (folder / part).iterdir()]
    known = ("tiny.onnx", "out.onnx", "other.onnx", "torchinductor_")
    return [name for name in names if not name.startswith(known)]


def measure(folder: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """One row for each width and signal."""
    moments, model = random.Random(seed), tiny_network(folder / "tiny.onnx")
    lengths = {bits: undisturbed(folder / bits, model, bits) for bits in RUNS}
    counts: dict[tuple[str, signal.Signals], Counter[str]] = {}
    seconds: Counter[tuple[str, signal.Signals]] = Counter()
    for place in range(count):
        number, bits = SIGNALS[place % len(SIGNALS)], list(RUNS)[place // len(SIGNALS) % len(RUNS)]
        began, whole = time.monotonic(), lengths[bits]
        found = killed(folder / str(place), model, bits, number, moments.uniform(0, whole.seconds), whole)
        counts.setdefault((bits, number), Counter()).update(found)
        seconds[bits, number] += time.monotonic() - began
        shutil.rmtree(folder / str(place))
    return [
        {
            "bits": bits,
            "signal": number.name,
            "seed": seed,
            "seconds": round(seconds[bits, number], 1),
            "seconds_undisturbed": round(lengths[bits].seconds, 1),
            **{key: found[key] for key in FACTS},
        }
        for (bits, number), found in sorted(counts.items())
    ]


FACTS = (
    "kills",
    "as_before",
    "whole",
    "corrupt",
    "exit_code_of_the_signal",
    "ended_otherwise",
    "untrue",
    "tracebacks",
    "left_by_the_kill",
    "left_after_the_next_run",
)
FAULTS = ("corrupt", "ended_otherwise", "untrue", "tracebacks", "left_after_the_next_run")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(Path(scratch), int(sys.argv[1]) if len(sys.argv) > 1 else COUNT, SEED)
    write_results(RESULTS, found)
    sys.exit(any(row[key] for row in found for key in FAULTS))

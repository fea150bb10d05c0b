"""Any real model: ours beside ONNX Runtime's quantize_static: `python -m samples.any_model.run [MODEL ...]`.

16 inputs calibrate both, the next 16 measure: signal to noise of the worst output against the file itself. Data-free is
what `onnxdfq compress MODEL` does of itself. Each is a process of its own, one after the other; seconds are of the
whole process. Rows that are there already are kept for models that are not named.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import onnxdfq
from onnxdfq.errors import DfqError
from onnxdfq.report.linting import lint
from samples.any_model.inputs import DATA, INPUTS, Array, Pictures
from samples.record import write_results

RESULTS = Path(__file__).with_name("results.json")
COUNT = 16
SIZES = {"mtcnn_pnet": "input_1=1,224,224,3", "ppocr_cls": "x=1,3,48,192", "silero_vad_16k_op15": "input=1,512"}
FED = {"silero_vad_16k_op15": ["sr=16000"], "hand_lstm": ["score_threshold=0.5"]}
BATCHED_BEHIND = {"state"}  # inputs whose samples lie along axis 1


def parted(arrays: dict[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """The first 16 samples of each input, and the next 16; what serves all stays whole."""

    def part(name: str, array: Array, start: int) -> Array:
        rows = np.arange(start, start + COUNT)
        return array.take(rows, 1 if name in BATCHED_BEHIND else 0) if array.ndim else array

    return (
        {name: part(name, array, 0) for name, array in arrays.items()},
        {name: part(name, array, COUNT) for name, array in arrays.items()},
    )


def timed(*command: str | Path) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Seconds of a process, and what came of it."""
    started = time.monotonic()
    found = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    return round(time.monotonic() - started, 1), found


def sqnr(file: Path, test: dict[str, Array], model: Path) -> float | str | None:
    """dB of the worst output; None where nothing differs; a sentence where the file does not run."""
    try:
        found = onnxdfq.evaluate(file, test, against=model).sqnr_db
    except DfqError as error:
        return str(error).replace(str(file), "the file")
    return None if found is None else round(found, 1)


def measure(name: str) -> dict[str, Any]:
    """One row."""
    model, inputs = DATA / "models" / f"{name}.onnx", INPUTS[name]
    calibration, test = parted(inputs(2 * COUNT))
    row: dict[str, Any] = {"model": name}
    with tempfile.TemporaryDirectory() as folder:
        data, ours, free, peer = (Path(folder) / part for part in ("c.npz", "ours.onnx", "free.onnx", "peer.onnx"))
        np.savez(data, **calibration)
        compress: list[str | Path] = [sys.executable, "-m", "onnxdfq", "compress", model, "--json", "-q"]
        row["seconds"], done = timed(*compress, "--calibration", data, "-o", ours)
        row["sqnr_db"] = sqnr(ours, test, model) if done.returncode == 0 else done.stderr.strip()
        if done.returncode == 0:
            stay = Counter(one.op_type for one in lint(ours).findings if one.verdict == "float")
            row["stays_float"] = dict(stay.most_common())
            row["verdict"] = json.loads(done.stdout)["verdict"]
        row["seconds_peer"], done = timed(sys.executable, "-m", "samples.any_model.peer", model, data, peer)
        lines = done.stderr.strip().splitlines()
        row["sqnr_db_peer"] = sqnr(peer, test, model) if done.returncode == 0 else f"fails: {lines[-1][:200]}"
        known = ["--normalize", inputs.normalize] if isinstance(inputs, Pictures) else []
        known += ["--input-shape", SIZES[name]] if name in SIZES else []
        known += [part for fed in FED.get(name, []) for part in ("--input", fed)]
        row["seconds_data_free"], done = timed(*compress, *known, "-o", free)
        if done.returncode == 0:
            said = json.loads(done.stdout)
            row["sqnr_db_data_free"] = sqnr(free, test, model)
            keys = ("method", "images", "verdict", "sqnr_db_held_back", "sqnr_db_images")
            row |= {f"data_free_{key}": said.get(key) for key in keys}
        else:
            row["sqnr_db_data_free"] = done.stderr.strip()
    print(json.dumps(row), flush=True)
    return row | {"seed": 0}


def main(names: list[str]) -> None:
    """Measure the models that are named, or all."""
    known = {row["model"]: row for row in json.loads(RESULTS.read_text())["rows"]} if RESULTS.exists() else {}
    for name in names or INPUTS:
        known[name] = measure(name)
    write_results(RESULTS, [known[name] for name in INPUTS if name in known])


if __name__ == "__main__":
    main(sys.argv[1:])
